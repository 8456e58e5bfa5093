"""`memory=`: less is kept, the numbers stay."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from benchmarks.kept import kept_bytes
from lfpgraph.wrapping.calls import wrapping_of

from .support.helpers import assert_made, assert_same, gradients


def kept(model: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes kept for feedback, parameters apart."""
    return kept_bytes(lambda: model(**batch), model.parameters())


def conv_net() -> tuple[nn.Module, dict[str, Any]]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5)), {"input": torch.randn(4, 3, 6, 6)}


@functools.cache
def usual(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor], int]:
    """A model, not wrapped, and a batch; its feedback and the bytes kept without the option."""
    torch.manual_seed(0)
    model, batch = conv_net() if name == "conv" else build_tiny(name, layers=1)
    model.double().train()
    batch = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}
    wrapped = lfpgraph.wrap(copy.deepcopy(model), engine="static")
    return model, batch, gradients(wrapped, **batch), kept(wrapped, batch)


slow = pytest.mark.slow


@pytest.mark.parametrize("share", ["min", 0.0])
@pytest.mark.parametrize("name", ["conv", "vit", *(pytest.param(n, marks=slow) for n in ("gpt2", "llama", "t5"))])
def test_same_feedback_less_kept(name: str, share: Any) -> None:
    plain, batch, expected, before = usual(name)
    model = lfpgraph.wrap(copy.deepcopy(plain), memory=share)
    assert_same(gradients(model, **batch), expected, 1e-12)
    assert kept(model, batch) <= before * (0.75 if name != "t5" else 1)


def norm_net(norm: Any, conv: Any) -> nn.Sequential:
    """Convolutions, of which the last is most of the work, each with a batch norm that trains."""
    return nn.Sequential(
        conv(3, 4, 3), norm(4), nn.ReLU(), conv(4, 12, 3), norm(12), nn.GELU(), conv(12, 24, 3), norm(24), nn.ReLU()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norms_are_made_again_from_their_statistics(dims: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, conv = getattr(nn, f"BatchNorm{dims}d"), functools.partial(getattr(nn, f"Conv{dims}d"), bias=False)
    plain = norm_net(norm, conv).to(dtype)
    plain[4] = norm(12, affine=False, dtype=dtype)
    x = torch.randn(6, 3, *[{1: 64, 2: 14, 3: 9}[dims]] * dims, dtype=dtype)
    if dims == 2:
        x = x.to(memory_format=torch.channels_last)
    usual, little = (lfpgraph.wrap(copy.deepcopy(plain), engine="static", memory=m) for m in ("fast", "min"))
    expected, found = gradients(usual, input=x), gradients(little, input=x)
    assert_same(found, expected, {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype])
    assert_same(dict(little.named_buffers()), dict(usual.named_buffers()), 0.0)
    assert kept(little, {"input": x}) <= 0.6 * kept(usual, {"input": x})
    (entry,) = wrapping_of(little).static.programs  # type: ignore[union-attr]
    again = [node.target for node in entry.program.feedback.graph.nodes]
    assert again.count(torch.ops.lfpgraph.normalized.default) == 3
    assert again.count(torch.ops.aten.convolution.default) <= 1  # the first, which is least work


@pytest.mark.parametrize(("memory", "repeated"), [("min", 0), (0.3, 2), (0.0, 4)])
def test_large_products_are_done_twice_only_where_a_share_asks_for_it(memory: str | float, repeated: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.GELU())))
    x = torch.randn(256, 128)
    expected = gradients(lfpgraph.wrap(copy.deepcopy(model), engine="static"), x)
    assert_same(gradients(lfpgraph.wrap(model, memory=memory), x), expected, 1e-5)
    (entry,) = wrapping_of(model).static.programs  # type: ignore[union-attr]
    again = [node.target for node in entry.program.feedback.graph.nodes]
    assert again.count(torch.ops.aten.addmm.default) == repeated


class Residual(nn.Module):
    """Sums along a path, and steps: values that are one light operation away from others that wait for feedback."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part((x > 0).to(x.dtype))
        return x


def test_what_is_light_is_made_again() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(512, 64)
    expected = gradients(lfpgraph.wrap(copy.deepcopy(model), "lfp-epsilon", engine="live"), x)
    lfpgraph.wrap(model, "lfp-epsilon", engine="static")
    assert_same(gradients(model, x), expected, 1e-5)
    one = 512 * 64 * 4
    assert (
        kept(model, {"x": x}) <= 12 * one  # with every spike and every sum it would be 18
    )  # products and every few sums; each spike and each sum beside them would be 18


def test_random_masks_are_kept_not_drawn_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 4)
    )
    x = torch.randn(6, 8)
    expected = gradients(lfpgraph.wrap(model, engine="static"), x)
    lfpgraph.wrap(lfpgraph.unwrap(model), memory=0.0)
    assert_same(gradients(model, x), expected, 1e-6)


def test_feedback_twice_and_other_sizes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    lfpgraph.wrap(model, memory="min")
    for n in (3, 1, 9):
        model.zero_grad()
        loss = model(torch.randn(n, 8)).square().sum()
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        loss.backward()
        for grad, p in zip(once, model.parameters()):
            torch.testing.assert_close(p.grad, 2 * grad)
    assert_made(model, "static")


@pytest.mark.parametrize("memory", ["small", -0.1, 2])
def test_unknown_option(memory: Any) -> None:
    with pytest.raises(lfpgraph.errors.WrapError, match="memory="):
        lfpgraph.wrap(nn.Linear(2, 2), memory=memory)


def test_saved_tensor_hooks_see_nothing_of_the_trace() -> None:
    seen: list[Tensor] = []
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        model(torch.randn(3, 4))
    assert seen and all(type(t) in (Tensor, nn.Parameter) and all(isinstance(n, int) for n in t.shape) for t in seen)


@pytest.mark.parametrize("draw", [torch.rand_like, lambda p: torch.multinomial(p, 1), lambda p: F.dropout(p, 0.5)])
@pytest.mark.parametrize("memory", ["fast", "min"])
def test_draws_that_nobody_reads_are_drawn(draw: Any, memory: str) -> None:
    """Those that follow depend on them."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            p = self.linear(x).softmax(-1)
            draw(p)
            return F.dropout(p, 0.3)

    model, x, found = Drawing(), torch.randn(4, 5), []
    for one in (model, lfpgraph.wrap(copy.deepcopy(model), engine="static", memory=memory)):
        torch.manual_seed(1)
        found.append((one(x).detach(), torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*found))
