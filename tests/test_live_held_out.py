"""What models of other libraries have shown to be wrong: a neural ODE's Jacobian, neighbours in a cloud of points."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .support.helpers import RECORDED


class _Jacobian(nn.Module):
    """Returns what a flow does to volumes, from many backward passes run as one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        z = self.second(torch.tanh(self.first(x)))
        seeds = torch.eye(3).unsqueeze(1).expand(3, len(x), 3)
        (rows,) = torch.autograd.grad(z, x, seeds, create_graph=True, is_grads_batched=True)
        return torch.cat([z, rows.diagonal(dim1=0, dim2=2).sum(-1, keepdim=True)], 1)


def test_many_backward_passes_inside_forward() -> None:
    torch.manual_seed(0)
    plain, x = _Jacobian(), torch.randn(4, 3)
    model = lfpgraph.wrap(copy.deepcopy(plain), RECORDED, engine="live")
    under_lfp = lfpgraph.wrap(copy.deepcopy(plain), engine="live")
    for _ in range(2):
        outputs = [each(x.clone()) for each in (plain, model, under_lfp)]
        for out in outputs:
            torch.testing.assert_close(out, outputs[0])
            out.square().sum().backward()
    for p, q, r in zip(plain.parameters(), model.parameters(), under_lfp.parameters()):
        torch.testing.assert_close(q.grad, p.grad)
        assert r.grad is not None and bool(r.grad.isfinite().all())


class _Neighbours(nn.Module):
    """Values of the nearest points, chosen by scores that nothing learns."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(3, 5)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        found = (-torch.cdist(x, x)).topk(2).indices if places is None else places
        values = self.value(x)[:, None].expand(-1, x.shape[1], -1, -1)
        return values.gather(2, found[..., None].expand(-1, -1, -1, 5)).sum(2)


@pytest.mark.parametrize("engine", ["live", "static"])
def test_a_choice_that_nothing_learns(engine: str) -> None:
    """Its values get what they would get if the places were given."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(_Neighbours(), engine=engine)
    twin = lfpgraph.wrap(copy.deepcopy(lfpgraph.unwrap(copy.deepcopy(model))), engine=engine)
    x = torch.randn(2, 4, 3)
    places = (-torch.cdist(x, x)).topk(2).indices
    model(x).square().sum().backward()
    twin(x, places).square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert p.grad is not None and bool(p.grad.any())
        torch.testing.assert_close(p.grad, q.grad)
