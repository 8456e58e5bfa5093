"""Derivatives of relevance: equal to differences of relevance, or refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import AttributionError
from lfpgraph.explain.derivatives import WRITTEN_OUT


class Block(nn.Module):
    """Attention, a norm and a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.norm, self.last = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unsqueeze(1).chunk(3, -1)
        x = self.norm(x + F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return self.last(F.silu(x).mean(1))


def _pictures() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)
    )  # fmt: skip
    model[1].running_mean.normal_()
    return model


def _tokens() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Embedding(5, 4), Block())


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.steps(x)[0][:, -1])


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IDS = torch.tensor([[0, 3, 1], [2, 2, 4]])
# Model, inputs, arguments of attribute.
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "block": (Block, _draw(2, 3, 4), {"composite": "attnlrp"}),
    "two runs": (Block, _draw(2, 3, 4), {"composite": "deeplift"}),
    "along a path": (Block, _draw(2, 3, 4), {"composite": "integrated-gradients", "steps": 3, "baseline": 0.5}),
    "merged norms": (_pictures, _draw(2, 1, 8, 8), {"composite": "epsilon-plus"}),
    "steps as one operation": (Steps, _draw(2, 3, 4), {"composite": "attnlrp"}),
    "tokens": (_tokens, IDS, {"composite": "cp-lrp"}),
    "tokens along a path": (_tokens, IDS, {"composite": "gradient-x-input", "steps": 2}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "block" else pytest.mark.slow) for name in CASES]
)
def test_equal_to_differences(name: str) -> None:
    make, x, how = CASES[name]
    model = make().double().eval()
    inputs = [x.clone().requires_grad_()] if x.is_floating_point() else []
    leaves = [*inputs, *(p for p in model.parameters() if p.dim() > 1)]
    given = inputs[0] if inputs else x
    relevance = lfpgraph.attribute(model, given, 1, differentiable=True, **how)
    plain = lfpgraph.attribute(model, given, 1, **how)
    assert not plain.requires_grad
    torch.testing.assert_close(relevance, plain)
    weights, ways = _draw(*relevance.shape, seed=3), [_draw(*t.shape, seed=4) for t in leaves]
    found = torch.autograd.grad((relevance * weights).sum(), leaves)
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for leaf, way in zip(leaves, ways):
                leaf += step * way
        values.append(float((lfpgraph.attribute(model, given, 1, **how) * weights).sum()))
    wanted = (values[0] - values[1]) / 2e-6
    assert math.isclose(sum(float((g * way).sum()) for g, way in zip(found, ways)), wanted, rel_tol=1e-5)


def test_learns_what_it_may_look_at() -> None:
    """Right for the right reasons: a penalty on the relevance of one input makes the model leave it alone."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(32, 4)
    optimizer, shares = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        relevance = lfpgraph.attribute(model, x, 0, "gradient-x-input", differentiable=True).abs().mean(0)
        shares.append(float((relevance[0] / relevance.sum()).detach()))
        optimizer.zero_grad()
        relevance[0].backward()
        optimizer.step()
    assert shares[-1] < 0.2 * shares[0]


@pytest.mark.parametrize("lost", ["native_layer_norm", pytest.param("silu_backward", marks=pytest.mark.slow)])
def test_a_derivative_that_torch_does_not_have_is_refused(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch hands back the deviation of a norm without a derivative and says nothing."""
    monkeypatch.delitem(WRITTEN_OUT, getattr(torch.ops.aten, lost).default)
    how = {"native_layer_norm": "attnlrp", "silu_backward": "gradient-x-input"}[lost]
    with pytest.raises(AttributionError, match=f"torch has none of aten.{lost}"):
        lfpgraph.attribute(Block().double(), _draw(2, 3, 4), 0, how, differentiable=True)


def _dual() -> Any:
    with forward_ad.dual_level():
        return lfpgraph.attribute(nn.Linear(4, 2), forward_ad.make_dual(torch.ones(1, 4), torch.ones(1, 4)), 0)


LINEAR = nn.Linear(4, 2)


def _explain(x: Tensor) -> Any:
    return lfpgraph.attribute(LINEAR, x, 0)


def _under_no_grad() -> Any:
    with torch.no_grad():
        return lfpgraph.attribute(nn.Linear(4, 2), torch.ones(1, 4), 0, differentiable=True)


X = torch.ones(2, 4)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "grad": (lambda: torch.func.grad(lambda x: _explain(x).sum())(X), r"within torch.func \(grad\)"),
    "vmap": (lambda: torch.func.vmap(lambda x: _explain(x[None]))(X), r"within torch.func \(vmap\)"),
    "jvp": (lambda: torch.func.jvp(_explain, (X,), (X,)), r"within torch.func \(jvp\)"),
    "dual numbers": (_dual, "forward-mode"),
    "no_grad": (_under_no_grad, "where nothing has a derivative"),
    "nothing to differentiate by": (
        lambda: lfpgraph.attribute(nn.Linear(4, 2).requires_grad_(False), X, 0, differentiable=True), "requires_grad_",
    ),
    "a function": (
        lambda: lfpgraph.attribute(nn.Linear(4, 2), X, lambda out: out[:, 0], differentiable=True), "not a function",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(AttributionError, match=words) as raised:
        function()
    assert "\n" not in str(raised.value)
