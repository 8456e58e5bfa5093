"""What many small parameters have in common is done by one operation: their scaling, and on a GPU their norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import lfpgraph
from lfpgraph.passes.fuse import SCALE_ALL, SCALE_NORMED, join_scalings
from lfpgraph.wrapping.calls import wrapping_of

ops = torch.ops.lfpgraph
WEIGHTS = [torch.linspace(-2, 1, 12).view(3, 4), torch.linspace(-1, 5, 6), torch.full((2, 2), -0.0)]
SIGNALS = [torch.linspace(1, -3, w.numel()).view(w.shape) for w in WEIGHTS]


def _joined(step: object, device: str) -> fx.GraphModule:
    """A graph that scales each signal by its weight, seen by the pass."""

    def scale(*given: Tensor) -> list[Tensor]:
        return [step(s + 1, w) for s, w in zip(given[:3], given[3:])]  # type: ignore[operator]

    with FakeTensorMode(allow_non_fake_inputs=True):
        module = make_fx(scale)(*(torch.empty_like(x, device=device) for x in (*SIGNALS, *WEIGHTS)))
    join_scalings(module.graph)
    module.recompile()
    return module


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_signals_are_scaled_together(device: str) -> None:
    module = _joined(ops.scale_by_size_.default, device)
    assert [node.target for node in module.graph.nodes].count(SCALE_ALL) == 1
    assert ops.scale_by_size_.default not in {node.target for node in module.graph.nodes}
    for found, s, w in zip(module(*SIGNALS, *WEIGHTS), SIGNALS, WEIGHTS, strict=True):
        torch.testing.assert_close(found, (s + 1) * w.abs(), rtol=0, atol=0)


@pytest.mark.parametrize("unit", [1.0, 3.0])
def test_norms_on_a_gpu_are_taken_together(unit: float) -> None:
    """The graph that is made for a GPU computes the same here, where its kernels are torch's own."""
    module = _joined(lambda s, w: ops.scale_by_floored_size_.default(s, w, 0.5, unit), "cuda")
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(torch.ops.aten._foreach_norm.Scalar) == 1 and targets.count(SCALE_NORMED) == 3
    for found, s, w in zip(module(*SIGNALS, *WEIGHTS), SIGNALS, WEIGHTS, strict=True):
        expected = ops.scale_by_floored_size.default(s + 1, w, 0.5, unit)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_program_scales_together() -> None:
    """The feedback of a model is that of its parameters one by one, also when the graph is gone through a second time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3))
    x, found = torch.randn(7, 6), []
    for engine in ("static", "live"):
        wrapped = lfpgraph.wrap(model, "lfp-epsilon", engine=engine)
        out = wrapped(x)
        for keep in (True, False):
            model.zero_grad()
            out.square().sum().backward(retain_graph=keep)
            found.append([p.grad for p in model.parameters()])
        if engine == "static":
            (entry,) = wrapping_of(wrapped).static.programs  # type: ignore[union-attr]
            assert SCALE_ALL in {node.target for node in entry.program.feedback.graph.nodes}
        lfpgraph.unwrap(wrapped)
    for grads in found[1:]:
        for a, b in zip(grads, found[0], strict=True):
            torch.testing.assert_close(a, b)
