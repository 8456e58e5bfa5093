"""Training on a GPU as people do it: mixed precision with a scaler, dropout, compiled, little memory, moved models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph

from ..support.device import DEVICE, moved
from ..support.helpers import relative, true_gradient

pytestmark = pytest.mark.gpu
ENGINES = pytest.mark.parametrize("engine", ["static", "live"])


def _conv() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5)]
    return nn.Sequential(*layers)


def _case(name: str, layers: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    if name == "conv":
        return _conv().to(DEVICE), moved({"input": torch.randn(4, 3, 6, 6)})
    model, batch = build_tiny(name, layers=layers)
    return model.to(DEVICE), moved(batch)


def _grads(model: nn.Module, batch: dict[str, Any], dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        out = model(**batch)
        out = out if isinstance(out, Tensor) else out.logits
        loss = (out.float() * torch.linspace(-1, 1, out.shape[-1], device=out.device)).sum()
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() / scale for p in model.parameters() if p.grad is not None]


@ENGINES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["conv", "vit", "gpt2", "bert"])
def test_precision(name: str, dtype: torch.dtype, engine: str) -> None:
    """In train mode: gradients of the plain model, and feedback in low precision near that in float32."""
    model, batch = _case(name)
    expected = _grads(copy.deepcopy(model), batch, dtype, 64.0)
    found = _grads(lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine), batch, dtype, 64.0)
    scale = max(float(g.norm()) for g in expected)
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}[dtype]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-2 * scale)
    model.eval()  # in train mode, masks of another precision are other masks
    low = _grads(lfpgraph.wrap(copy.deepcopy(model), engine=engine), batch, dtype, 64.0)
    exact = _grads(lfpgraph.wrap(model, engine=engine), batch, torch.float32)
    scale = max(float(g.norm()) for g in exact)
    for a, b in zip(low, exact, strict=True):
        assert bool(a.isfinite().all())
        assert float((a - b).norm()) <= 0.25 * max(float(b.norm()), 3e-2 * scale)


@ENGINES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_learns_with_a_scaler(dtype: torch.dtype, engine: str) -> None:
    """60 steps on 64 examples; the first scale is far too large, so that the scaler skips steps and lowers it."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to(DEVICE), engine=engine)
    x, y = torch.randn(64, 16, device=DEVICE), torch.randint(4, (64,), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**60, enabled=dtype == torch.float16)
    losses = []
    for _ in range(60 if dtype == torch.bfloat16 else 110):
        with torch.autocast(DEVICE, dtype):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert dtype == torch.bfloat16 or scaler.get_scale() < 2.0**60


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_dropout_goes_static(name: str) -> None:
    """The check of the graph draws the model's own masks, on the GPU's generator; the plain model's gradients come out."""
    model, batch = _case(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    model.train()
    expected = _grads(copy.deepcopy(model), batch, torch.float32)
    wrapped = lfpgraph.wrap(model, "gradient", engine="static")
    found = _grads(wrapped, batch, torch.float32)
    assert lfpgraph.explain_wrap(wrapped).engine == "static"
    scale = max(float(g.norm()) for g in expected)
    assert all(float((a - b).norm()) <= 1e-3 * scale for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["conv", "gpt2", "vit"])
@pytest.mark.parametrize("options", [{"compile": True}, {"memory": "min"}, {"regional": True}], ids=str)
def test_ways_to_run(name: str, options: dict[str, Any]) -> None:
    """Compiled, with little memory, in parts: the numbers of the plain static engine."""
    if name != "vit" and "regional" in options:
        pytest.skip("one of the two has no two blocks alike, the blocks of the other are given a cache")
    model, batch = _case(name, layers=2)
    model.eval()
    expected = _grads(lfpgraph.wrap(copy.deepcopy(model), engine="static"), batch, torch.float32)
    found = _grads(lfpgraph.wrap(model, **options), batch, torch.float32)
    scale = max(float(g.norm()) for g in expected)
    assert all(float((a - b).norm()) <= 2e-3 * scale for a, b in zip(found, expected, strict=True))


@ENGINES
def test_a_wrapped_model_moves(engine: str) -> None:
    """Wrapped and stepped on the CPU, moved, stepped on the GPU, moved back: each step is that of a fresh model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).double()
    x = torch.randn(4, 6).double()
    wrapped = lfpgraph.wrap(copy.deepcopy(model), engine=engine)
    wanted = _grads(lfpgraph.wrap(model, engine=engine), {"input": x}, torch.float32)
    for device in ("cpu", DEVICE, "cpu"):
        found = _grads(wrapped.to(device), {"input": x.to(device)}, torch.float32)
        assert all(relative(a.cpu(), b) < 1e-6 for a, b in zip(found, wanted, strict=True))


class TwoPlaces(nn.Module):
    """A table of vectors on the CPU, the rest on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 5, device=DEVICE)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).to(DEVICE).mean(1))


@ENGINES
def test_a_model_in_two_places(engine: str) -> None:
    torch.manual_seed(0)
    model, batch = TwoPlaces(), {"ids": torch.randint(10, (4, 3))}
    expected = _grads(copy.deepcopy(model), batch, torch.float32)
    found = _grads(lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine), batch, torch.float32)
    assert all(relative(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))
    feedback = _grads(lfpgraph.wrap(model, engine=engine), batch, torch.float32)
    assert len(feedback) == 3 and all(bool(g.isfinite().all()) and bool(g.any()) for g in feedback)


@ENGINES
def test_another_stream(engine: str) -> None:
    """A step on a stream of its own, as loaders and pipelines do it."""
    model, batch = _case("conv")
    expected = _grads(lfpgraph.wrap(copy.deepcopy(model), engine=engine), batch, torch.float32)
    if DEVICE == "cpu":
        pytest.skip("a CPU has no streams")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = _grads(lfpgraph.wrap(model, engine=engine), batch, torch.float32)
    torch.cuda.current_stream().wait_stream(stream)
    scale = max(float(g.norm()) for g in expected)
    assert all(float((a - b).norm()) <= 1e-3 * scale for a, b in zip(found, expected, strict=True))


def test_attribution() -> None:
    torch.manual_seed(0)
    model, x = _conv().double().eval(), torch.randn(2, 3, 6, 6).double()
    expected = lfpgraph.attribute(model, x, target=1)
    found = lfpgraph.attribute(model.to(DEVICE), x.to(DEVICE), target=1)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=1e-9)


@ENGINES
def test_memory_is_flat(engine: str) -> None:
    """40 steps after the first ones leave nothing behind."""
    model, batch = _case("gpt2")
    wrapped = lfpgraph.wrap(model, engine=engine)
    sizes = []
    for _ in range(43):
        _grads(wrapped, batch, torch.float32)
        sizes.append(torch.cuda.memory_allocated() if DEVICE == "cuda" else 0)
    assert sizes[-1] <= sizes[3] + 4096
