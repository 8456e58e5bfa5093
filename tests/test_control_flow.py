"""torch's own control flow (`torch.cond`, `scan`, `map`, `while_loop`) live: feedback is that of the same steps in Python."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as over_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import lfpgraph

STEPS = 3


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


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, of what it compiles
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
