"""Kernels that only a GPU picks: fused attention of three kinds, cuDNN's recurrent layers, norms and losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lfpgraph
from lfpgraph import numerics

from ..support.device import DEVICE, moved
from ..support.helpers import RECORDED, relative

pytestmark = pytest.mark.gpu
HALF = {SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION}


class Attention(nn.Module):
    def __init__(self, causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(64, 64), nn.Linear(64, 128 // groups), nn.Linear(64, 64)
        self.causal, self.groups = causal, groups

    def forward(self, x: Tensor) -> Tensor:
        heads = [t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in (self.q(x), *self.kv(x).chunk(2, -1))]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=self.causal, enable_gqa=self.groups > 1)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _grads(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    (model(x).float() * torch.linspace(-1, 1, 64, device=x.device)).sum().backward()
    return [p.grad.float() for p in model.parameters() if p.grad is not None]


@contextmanager
def _kernel(backend: SDPBackend) -> Iterator[None]:
    with sdpa_kernel(backend):
        yield


@pytest.mark.parametrize("engine", ["static", "live"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "backend",
    [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    ids=lambda b: b.name,
)
def test_fused_attention(backend: SDPBackend, causal: bool, engine: str) -> None:
    """Gradients equal the plain model's under the same kernel; feedback is the plain formula's, to the kernel's precision."""
    dtype = torch.bfloat16 if backend in HALF else torch.float32
    torch.manual_seed(0)
    model = Attention(causal).to(DEVICE, dtype)
    x = torch.randn(3, 40, 64, device=DEVICE, dtype=dtype)
    with _kernel(backend):
        try:
            expected = _grads(copy.deepcopy(model), x)
        except RuntimeError as error:
            pytest.skip(f"this device has no such kernel: {error}")
        composite = "gradient" if engine == "static" else RECORDED
        found = _grads(lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine), x)
        feedback = _grads(lfpgraph.wrap(copy.deepcopy(model), engine=engine), x)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    scale = max(float(g.norm()) for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-2 * scale)
    with _kernel(SDPBackend.MATH):
        formula = _grads(lfpgraph.wrap(copy.deepcopy(model).double(), engine=engine), x.double())
    scale = max(float(g.norm()) for g in formula)
    for a, b in zip(feedback, formula, strict=True):
        assert float((a - b).norm()) <= 3 * tolerance * max(float(b.norm()), 3e-2 * scale)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(6, 8, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Cells(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(6, 8), nn.Linear(8, 64)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm-two-ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2),
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm-cells": lambda: Cells(nn.LSTMCell),
    "gru-cells": lambda: Cells(nn.GRUCell),
}


@pytest.mark.parametrize("engine", ["static", "live"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent(name: str, engine: str) -> None:
    torch.manual_seed(0)
    model = RECURRENT[name]().double()
    x = torch.randn(3, 5, 6).double()
    there = copy.deepcopy(model).to(DEVICE)
    expected = _grads(copy.deepcopy(there), x.to(DEVICE))
    composite = "gradient" if engine == "static" else RECORDED
    found = _grads(lfpgraph.wrap(copy.deepcopy(there), composite, engine=engine), x.to(DEVICE))
    assert all(relative(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))
    feedback = _grads(lfpgraph.wrap(there, engine=engine), x.to(DEVICE))
    assert all(
        relative(a.cpu(), b) < 1e-6
        for a, b in zip(feedback, _grads(lfpgraph.wrap(model, engine=engine), x), strict=True)
    )


def _norms() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.GELU()]
    return nn.Sequential(*layers, nn.InstanceNorm2d(8, affine=True), nn.Flatten(), nn.Linear(8 * 64, 64)).double()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("engine", ["static", "live"])
def test_convolutions_and_norms(engine: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model, x = _norms().to(memory_format=layout), torch.randn(4, 3, 12, 12).double().to(memory_format=layout)
    there = copy.deepcopy(model).to(DEVICE)
    composite = "gradient" if engine == "static" else RECORDED
    found = _grads(lfpgraph.wrap(copy.deepcopy(there), composite, engine=engine), x.to(DEVICE))
    expected = _grads(copy.deepcopy(there), x.to(DEVICE))
    scale = max(float(g.norm()) for g in expected)
    assert all(float((a - b).norm()) < 1e-6 * scale for a, b in zip(found, expected, strict=True))
    feedback = _grads(lfpgraph.wrap(there, engine=engine), x.to(DEVICE))
    wanted = _grads(lfpgraph.wrap(model, engine=engine), x)
    scale = max(float(g.norm()) for g in wanted)
    assert all(float((a.cpu() - b).norm()) < 1e-6 * scale for a, b in zip(feedback, wanted, strict=True))


class Looking(nn.Module):
    """Reads an image where a small net says; in this form cuDNN has a kernel of its own for it."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.out = nn.Linear(6, 2 * 9), nn.Linear(2 * 9, 64)

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, :8].reshape(-1, 2, 2, 2)
        grid = self.where(x[:, :6]).tanh().reshape(-1, 3, 3, 2)
        return self.out(F.grid_sample(image, grid, align_corners=True).flatten(1))


@pytest.mark.parametrize("engine", ["static", "live"])
def test_grid_sample(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Looking().double(), torch.randn(4, 8).double()
    wanted = _grads(lfpgraph.wrap(copy.deepcopy(model), engine=engine), x)
    found = _grads(lfpgraph.wrap(model.to(DEVICE), engine=engine), x.to(DEVICE))
    assert all(relative(a.cpu(), b) < 1e-6 for a, b in zip(found, wanted, strict=True))


class Transcriber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        log_p = self.body(x).log_softmax(-1).transpose(0, 1)
        of_x, of_y = (torch.full((len(x),), n, device=x.device) for n in (x.shape[1], 3))
        return F.ctc_loss(log_p, targets, of_x, of_y)


@pytest.mark.parametrize("engine", ["auto", "live"])
def test_ctc(engine: str) -> None:
    torch.manual_seed(0)
    model, x = Transcriber().to(DEVICE), torch.randn(4, 12, 6, device=DEVICE)
    targets = torch.randint(1, 5, (4, 3), device=DEVICE)

    def grads(m: nn.Module) -> list[Tensor]:
        m.zero_grad()
        m(x, targets).backward()
        return [p.grad for p in m.parameters() if p.grad is not None]

    expected = grads(copy.deepcopy(model))
    found = grads(lfpgraph.wrap(copy.deepcopy(model), RECORDED if engine == "live" else "gradient", engine=engine))
    assert all(relative(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))
    assert all(bool(g.isfinite().all()) for g in grads(lfpgraph.wrap(model, engine=engine)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_formulas_in_one_kernel(dtype: torch.dtype) -> None:
    """The kernels that are compiled for a GPU: the formulas' numbers, for odd ones too, laid out in any way."""
    torch.manual_seed(0)
    x, y, z = (torch.randn(6, 300, dtype=torch.float64).to(dtype) for _ in range(3))
    y[0, :4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    x, y, z = x.t(), y.t(), z.t()
    for run in (
        lambda s, w, z: numerics.scale_by_size(s, w),
        lambda s, w, z: numerics.scale_by_floored_size(s, w.nan_to_num(1, 1, 1), 0.3, 2.0),
        lambda s, w, z: numerics.epsilon_factor(s, w, 1e-3),
        lambda s, w, z: numerics.identity_signal(s, w, z, 1e-3),
        lambda s, w, z: torch.ops.lfpgraph.rectified_factor(s, w.nan_to_num(1).relu(), 1e-3),
    ):
        with torch.no_grad():
            found = run(*moved((x, y, z))).cpu()
            expected = run(x.double(), y.double(), z.double())
        assert found.dtype == dtype
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
