"""Every model of the tiny zoo: same outputs wrapped, gradient composite equal to autograd, feedback finite."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import TINY, build_tiny
from torch import Tensor, nn

import lfpgraph

from .support.helpers import assert_made, assert_same, gradients, lfp, true_gradient

HF = ("vit", "bert", "gpt2", "llama", "qwen3", "t5")
SLOW = {("vit", "sdpa"), ("gpt2", "sdpa"), ("t5", "sdpa"), ("t5", "eager")}
SLOW |= {(name, attention) for name in ("qwen3", "llama") for attention in ("eager", "sdpa")}
CASES = [
    pytest.param(
        name,
        attention,
        id=f"{name}-{attention}",
        marks=[pytest.mark.slow] if (name, attention) in SLOW else [],
    )
    for name in TINY
    for attention in (("eager", "sdpa") if name in HF else ("eager",))
]
IN_FLOAT32 = {"live": ("mlp", "vgg-bn", "lstm", "vit", "bert"), "static": ("mlp", "vgg-bn", "bert")}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def _cast(model: nn.Module, batch: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    return model.to(dtype), {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def _repeat(batch: dict[str, Any], times: int) -> dict[str, Any]:
    larger = {id(v): torch.cat([v] * times) for v in batch.values()}  # labels that are the inputs stay the inputs
    return {k: larger[id(v)] for k, v in batch.items()}


def _tensors(out: Any) -> list[Tensor]:
    return [t for t in ([out] if isinstance(out, Tensor) else [out.loss, out.logits])]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_gradient_composite_equals_autograd(name: str, attention: str, engine: str) -> None:
    """Train mode with dropout, float64 and (one layer) float32, then another batch size on the same trace or plan."""
    for dtype, tolerance in TOLERANCE.items():
        if dtype == torch.float32 and (attention == "sdpa" or name not in IN_FLOAT32[engine]):
            continue
        layers = 2 if dtype == torch.float64 and engine == "live" else 1  # tracing is what takes long
        model, batch = _cast(*build_tiny(name, attention, layers=layers), dtype)
        args, kwargs = ((batch["input"],), {}) if "input" in batch else ((), batch)
        twin = copy.deepcopy(model)
        lfpgraph.wrap(model, true_gradient(engine), engine=engine)
        # A key's bias cannot change a softmax: its gradient is rounding noise, compared absolutely.
        floor = 1e-13 if dtype == torch.float64 else 1e-5
        assert_same(gradients(model, *args, **kwargs), gradients(twin, *args, **kwargs), tolerance, floor)
        for key, value in twin.named_buffers():
            torch.testing.assert_close(dict(model.named_buffers())[key], value, rtol=1e-6, atol=1e-8)
        if dtype == torch.float64:
            larger = _repeat(batch, 2)
            args, kwargs = ((larger["input"],), {}) if "input" in batch else ((), larger)
            assert_same(gradients(model, *args, **kwargs), gradients(twin, *args, **kwargs), tolerance, floor)
            assert_made(model, engine)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_outputs_equal_and_feedback_finite(name: str, attention: str, engine: str) -> None:
    """Train mode at the same seed, eval mode with autograd on, no_grad: the same outputs; feedback in both modes."""
    model, batch = build_tiny(name, attention, layers=1)
    args, kwargs = ((batch["input"],), {}) if "input" in batch else ((), batch)
    twin = copy.deepcopy(model)
    lfpgraph.wrap(model, "lfp-epsilon", engine=engine)
    for mode in (True, False):
        model.train(mode), twin.train(mode)
        torch.manual_seed(5)
        out = model(*args, **kwargs)
        torch.manual_seed(5)
        expected = twin(*args, **kwargs)
        assert type(out) is type(expected)
        for found, wanted in zip(_tensors(out), _tensors(expected)):
            _assert_equal(found, wanted, name)
        model.zero_grad()
        sum(t.sum() for t in _tensors(out)).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads and all(bool(torch.isfinite(g).all()) for g in grads)
        assert sum(bool(g.any()) for g in grads) >= len(grads) // 2
        model.load_state_dict(twin.state_dict())
    with torch.no_grad():
        for found, wanted in zip(_tensors(model(*args, **kwargs)), _tensors(twin(*args, **kwargs))):
            assert torch.equal(found, wanted)


def _assert_equal(found: Tensor, wanted: Tensor, name: str) -> None:
    """Bit-equal, but for the fused recurrent kernel, which feedback writes out as its cells."""
    if name == "lstm":
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["mlp", "vgg-bn", "bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_bfloat16(name: str, engine: str) -> None:
    """Feedback in bfloat16 is the float32 feedback up to that type's precision."""
    model, batch = _cast(*build_tiny(name, layers=1), torch.bfloat16)
    args, kwargs = ((batch["input"],), {}) if "input" in batch else ((), batch)
    model.eval()
    low = lfp(model, *args, **kwargs, engine=engine)
    wide, batch = _cast(copy.deepcopy(model), batch, torch.float32)
    args, kwargs = ((batch["input"],), {}) if "input" in batch else ((), batch)
    high = lfp(wide, *args, **kwargs, engine=engine)
    ours = torch.cat([g.flatten().float() for g in low.values()])
    reference = torch.cat([g.flatten() for g in high.values()])
    assert all(g.dtype == torch.bfloat16 for g in low.values())
    assert torch.nn.functional.cosine_similarity(ours, reference, dim=0) > 0.98


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "bert" else [pytest.mark.slow]) for n in HF])
def test_eager_and_sdpa_same_feedback(name: str, engine: str) -> None:
    """Whole models, float64, dropout off: T5's learned position bias included."""
    found = []
    for attention in ("eager", "sdpa"):
        layers = 2 if engine == "live" else 1
        model, batch = _cast(*build_tiny(name, attention, layers=layers), torch.float64)
        found.append(lfp(model.eval(), **batch, engine=engine))
    # transformers' eager attention takes its softmax in float32, its RMS norms too: that rounding is all that differs.
    assert_same(found[1], found[0], 1e-4, 1e-9)
