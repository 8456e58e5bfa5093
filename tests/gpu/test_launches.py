"""What a step starts on a GPU: batch norms by cuDNN, scalings and norms together, a kernel and a product for a recurrent step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.torch_models import ResNet18
from lfpgraph.rules import loops
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lfpgraph
from lfpgraph.engine import recurrent
from lfpgraph.native.steps import RunningKernel

from ..support.device import DEVICE
from ..support.helpers import RECORDED

pytestmark = pytest.mark.gpu
only_on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="counts what a GPU runs")


class _Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int = 12, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, width, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def _step(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor) -> list[Tensor]:
    for p in parameters:
        p.grad = None
    out = model(x)
    (out * torch.linspace(-1, 1, out.shape[-1], device=x.device, dtype=x.dtype)).sum().backward()
    return [out.detach(), *(p.grad for p in parameters if p.grad is not None)]


def _wrapped(model: nn.Module, x: Tensor, *options: Any, **more: Any) -> list[Tensor]:
    model = copy.deepcopy(model)
    wrapped = lfpgraph.wrap(model, *options, **more)
    _step(wrapped, list(model.parameters()), x)
    return [*_step(wrapped, list(model.parameters()), x), *(b.float() for b in model.buffers())]


def _kernels(run: Callable[[], object]) -> Counter[str]:
    """What a GPU has run, by name."""
    run()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return Counter(e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA)


def _close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    scale = max(float(b.norm()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b.to(a.device)).norm()) <= tolerance * max(float(b.norm()), 1e-2 * scale)


@pytest.mark.parametrize(
    ("engine", "composite", "dtype"),
    [("static", "lfp", torch.float64), ("live", "lfp", torch.float64), ("static", "lfp-epsilon", torch.float32)],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {"num_layers": 2}), (nn.GRU, {"bias": False}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})],
    ids=str,
)
def test_recurrent_steps_by_kernels(
    kind: type[nn.RNNBase], options: dict[str, Any], dtype: torch.dtype, composite: str, engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same numbers as by torch's operations, and as on the CPU."""
    torch.manual_seed(0)
    model, x = _Reader(kind, **options).to(dtype), torch.randn(5, 9, 6, dtype=dtype)
    there = copy.deepcopy(model).to(DEVICE)
    started: list[int] = []
    own = RunningKernel.__call__
    monkeypatch.setattr(RunningKernel, "__call__", lambda self, t: (started.append(t), own(self, t))[1])
    found = _wrapped(there, x.to(DEVICE), composite, engine=engine)
    if DEVICE == "cuda":
        layers = options.get("num_layers", 1)
        assert len(started) >= 2 * 2 * 9 * layers, "steps run by torch's operations"  # there and back, twice
    for module in (recurrent, loops):
        monkeypatch.setattr(module, "is_worth_a_loop", lambda x: False)
    expected = _wrapped(there, x.to(DEVICE), composite, engine=engine)
    on_the_cpu = _wrapped(model, x, composite, engine=engine)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    _close(found, expected, tolerance)
    _close(found, on_the_cpu, tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon", "gradient"])
def test_feedback_of_a_residual_net(composite: str, layout: torch.memory_format) -> None:
    """Outputs, feedback and running statistics: static as live, and as on the CPU; plain gradients as without a wrap."""
    torch.manual_seed(0)
    model = ResNet18(classes=6, width=8).to(torch.float64, memory_format=layout)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64).to(memory_format=layout)
    there, x_there = copy.deepcopy(model).to(DEVICE), x.to(DEVICE)
    static = _wrapped(there, x_there, composite, engine="static")
    _close(static, _wrapped(there, x_there, RECORDED if composite == "gradient" else composite, engine="live"), 1e-8)
    _close(static, _wrapped(model, x, composite, engine="static"), 1e-6)


@only_on_a_gpu
def test_a_residual_net_starts_little_more_than_backprop() -> None:
    """No copy of a statistic, cuDNN's batch norms, and one operation for all norms of weights."""
    torch.manual_seed(0)
    model, x = ResNet18(classes=10, width=16).to(DEVICE), torch.randn(4, 3, 64, 64, device=DEVICE)
    plain, wrapped = copy.deepcopy(model), lfpgraph.wrap(copy.deepcopy(model), "lfp", engine="static")
    of_backprop = _kernels(lambda: _step(plain, list(plain.parameters()), x))
    ours = _kernels(lambda: _step(wrapped, list(wrapped.parameters()), x))
    print("backprop", of_backprop.total(), "static lfp", ours.total(), (ours - of_backprop).most_common(20))

    def count(kernels: Counter[str], part: str) -> int:
        return sum(n for name, n in kernels.items() if part in name)

    assert count(ours, "Memcpy DtoD") <= count(of_backprop, "Memcpy DtoD") + 2
    assert count(ours, "bn_fw") == count(of_backprop, "bn_fw") and count(ours, "bn_bw") == count(of_backprop, "bn_bw")
    assert count(ours, "NormTwoOps") == 0
    assert ours.total() <= of_backprop.total() + 21 + 20  # a scaling for each weight, and a few


@only_on_a_gpu
def test_an_lstm_starts_a_kernel_and_a_product_for_a_step() -> None:
    torch.manual_seed(0)
    model, x = _Reader(nn.LSTM, 64).to(DEVICE), torch.randn(16, 40, 6, device=DEVICE)
    wrapped = lfpgraph.wrap(model, "lfp", engine="static")
    ours = _kernels(lambda: _step(wrapped, list(model.parameters()), x))
    print("static lfp", ours.total(), ours.most_common(12))
    assert sum(n for name, n in ours.items() if "run_step" in name) == 2 * 40
    assert ours.total() <= 2 * 40 * 3 + 60  # a product may be two kernels
