"""Mixed precision: autocast, whole models in bfloat16, scaled losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph

from .support.helpers import relative


def conv_net() -> tuple[nn.Module, dict[str, Any]]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)]
    return nn.Sequential(*layers), {"input": torch.randn(4, 3, 6, 6)}


def case(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return conv_net() if name == "conv" else build_tiny(name, layers=1)


def step(model: nn.Module, batch: dict[str, Any], scale: float = 1.0, cast: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Output and `.grad` of a step; forward under autocast, backward outside, as training loops do."""
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        out = model(**batch)
        out = out if isinstance(out, Tensor) else out.logits
        loss = (out.float() * torch.linspace(-1, 1, out.shape[-1])).sum()
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["conv", "vit", "gpt2"])
def test_autocast(name: str) -> None:
    """Outputs equal bit by bit; the gradient composite is autograd's; feedback is float32's to bfloat16's precision."""
    model, batch = case(name)
    model.eval()
    plain = copy.deepcopy(model)
    lfpgraph.wrap(model, "gradient")
    (out, grads), (expected, wanted) = step(model, batch), step(plain, batch)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for found, want in zip(grads, wanted, strict=True):
        assert found.dtype == torch.float32 and relative(found, want) < 0.02
    lfpgraph.wrap(lfpgraph.unwrap(model))
    low, exact = step(model, batch)[1], step(model, batch, cast=False)[1]
    for found, want in zip(low, exact, strict=True):
        floor = 1e-3 * max(float(g.abs().max()) for g in exact)  # rounding noise, such as the feedback of a key's bias
        assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())
        assert relative(found, want) < 0.25 or float((found - want).abs().max()) < floor


@pytest.mark.parametrize("cast", [True, False])
def test_scaled_loss_scales_feedback(cast: bool) -> None:
    """What GradScaler relies on: feedback is linear in the loss."""
    model, batch = case("conv")
    lfpgraph.wrap(model.eval())
    plain, scaled = step(model, batch, cast=cast)[1], step(model, batch, 2.0**10, cast)[1]
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(b / 2.0**10, a, rtol=1e-6, atol=0)


def test_grad_scaler_steps_and_skips() -> None:
    model, batch = case("conv")
    lfpgraph.wrap(model)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for bad in (False, True):
        before = [p.detach().clone() for p in model.parameters()]
        loss = model(**batch).square().sum() * (float("inf") if bad else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before)) is bad


def test_epsilon_is_not_lost_in_low_precision() -> None:
    """Stabilizers are computed in float32: an epsilon far below bfloat16's steps still counts near zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)).to(torch.bfloat16)
    x = (torch.randn(5, 6) * 1e-3).to(torch.bfloat16)
    rules = lfpgraph.get_composite("lfp-epsilon").with_options(epsilon=1e-3)
    low = lfpgraph.wrap(copy.deepcopy(model), rules)
    high = lfpgraph.wrap(copy.deepcopy(model).float(), rules)
    for m, dtype in ((low, torch.bfloat16), (high, torch.float32)):
        m(x.to(dtype)).sum().backward()
    for a, b in zip(low.parameters(), high.parameters()):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.bfloat16
        assert relative(a.grad, b.grad) < 0.03


class Scored(nn.Module):
    """A loss of log-probabilities in half precision, which autocast computes in float32 inside of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.layer(x).log_softmax(-1).to(torch.bfloat16)
        return nn.functional.nll_loss(scores, y) * 2


def test_casts_inside_of_an_operation_are_traced() -> None:
    torch.manual_seed(0)
    model, x, y = Scored(), torch.randn(6, 4), torch.randint(5, (6,))
    wrapped = lfpgraph.wrap(copy.deepcopy(model), "gradient", engine="static")
    losses = []
    for one in (model, wrapped):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(one(x, y))
        losses[-1].backward()
    assert losses[1].dtype == torch.float32 and torch.equal(*losses)
    assert lfpgraph.explain_wrap(wrapped).engine == "static"
    assert relative(wrapped.layer.weight.grad, model.layer.weight.grad) < 1e-6
