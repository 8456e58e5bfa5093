"""torch's own control flow (`torch.cond`, `scan`, `map`, `while_loop`) live: feedback is that of the same steps in Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._higher_order_ops.map import map as over_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.utils.checkpoint import checkpoint

import lfpgraph
from lfpgraph.errors import LiveOnlyError

STEPS = 3
# torch's own, of what it compiles
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def _in_a_branch(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda h: layer(h).tanh(), lambda h: layer(h).sigmoid(), (h,))  # type: ignore[no-any-return]


def _in_a_scan(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        new = (layer(state) + x).tanh()
        return new, new.clone()

    return scan(step, torch.zeros_like(h[0]), h)[1]  # type: ignore[no-any-return]


def _by_a_scan_in_python(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    states = [torch.zeros_like(h[0])]
    for x in h:
        states.append((layer(states[-1]) + x).tanh())
    return torch.stack(states[1:])


def _in_a_loop(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    start = torch.tensor(0), h
    return while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, layer(h).tanh()), start)[1]  # type: ignore[no-any-return]


def _by_a_loop_in_python(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    for _ in range(3):
        h = layer(h).tanh()
    return h


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cond": (_in_a_branch, lambda layer, h: layer(h).tanh() if h.sum() > 0 else layer(h).sigmoid()),
    "map": (
        lambda layer, h: over_rows(lambda x: layer(x).tanh(), h),
        lambda layer, h: torch.stack([layer(x).tanh() for x in h]),
    ),
    "scan": (_in_a_scan, _by_a_scan_in_python),
    "while_loop": (_in_a_loop, _by_a_loop_in_python),
}


class _Model(nn.Module):
    def __init__(self, flow: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(n, m).double() for n, m in ((4, 6), (6, 6), (6, 2)))
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.flow(self.inner, self.first(x)))  # type: ignore[no-any-return]


def _feedback(flow: Callable[..., Tensor], composite: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = _Model(flow)
    lfpgraph.wrap(model, composite, engine="live")
    found = []
    for step in range(STEPS):
        x = torch.randn(3, 4, dtype=torch.float64) + 2 * step - 2  # both branches of `cond` are taken
        model.zero_grad()
        model(x.requires_grad_()).square().sum().backward()
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None] + [x.grad]
    return found


@pytest.mark.parametrize("composite", ["gradient", "lfp", "lfp-epsilon"])
@pytest.mark.parametrize("name", PAIRS)
def test_feedback_is_that_of_the_same_steps_in_python(
    name: str, composite: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lfpgraph")
    flow, python = PAIRS[name]
    found, expected = _feedback(flow, composite), _feedback(python, composite)
    assert len(found) == len(expected) == 7 * STEPS
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert "computes nothing" not in caplog.text
    if name == "cond":  # the branch is no function with a backward pass of its own
        assert "own backward" not in caplog.text


@pytest.mark.parametrize("engine", ["live", "auto"])
@pytest.mark.parametrize("composite", ["gradient", "lfp"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_between_steps(mode: Callable[[], Any], composite: str, engine: str) -> None:
    model = _Model(_in_a_branch)
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = model(x).detach()
    lfpgraph.wrap(model, composite, engine=engine)
    for _ in range(2):
        with mode():
            assert torch.equal(model(x), expected)
        model(x).sum().backward()


def _in_a_checkpoint(flow: Callable[..., Tensor], reentrant: bool) -> Callable[..., Tensor]:
    def checkpointed(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        return checkpoint(flow, layer, h, use_reentrant=reentrant)  # type: ignore[no-any-return]

    return checkpointed


@pytest.mark.parametrize("composite", ["gradient", "lfp"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_branch_in_a_checkpoint_is_run_again_in_the_same_way(reentrant: bool, composite: str) -> None:
    flow, python = PAIRS["cond"]
    found = _feedback(_in_a_checkpoint(flow, reentrant), composite)
    expected = _feedback(_in_a_checkpoint(python, reentrant), composite)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_branch_of_each_row_hands_on_its_own_derivative() -> None:
    def by_rows(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        row = lambda r: torch.cond(r.sum() > 0, lambda r: layer(r).tanh(), lambda r: layer(r).sigmoid(), (r,))  # noqa: E731
        return torch.vmap(row)(h)  # type: ignore[no-any-return]

    def in_python(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        return torch.vmap(lambda r: torch.where(r.sum() > 0, layer(r).tanh(), layer(r).sigmoid()))(h)  # type: ignore[no-any-return]

    for a, b in zip(_feedback(by_rows, "lfp"), _feedback(in_python, "lfp"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_program_does_not_follow_a_branch_taken_without_gradients() -> None:
    def flow(layer: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        with torch.no_grad():
            g = torch.cond(h.sum() > 0, lambda h: h * 2, lambda h: h * 3, (h,))
        return layer(h) * g

    model = lfpgraph.wrap(_Model(flow), "gradient", engine="static")
    with pytest.raises(LiveOnlyError, match="control flow without gradients"):
        model(torch.randn(3, 4, dtype=torch.float64))


def test_a_branch_around_the_model_is_refused_with_a_reason() -> None:
    model = _Model(_by_a_loop_in_python)
    lfpgraph.wrap(model, engine="live")
    x = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(UncapturedHigherOrderOpError, match="lfpgraph: feedback of a wrapped model is no part of"):
        torch.cond(x.sum() > 0, lambda x: model(x), lambda x: model(x) * 2, (x,))
