"""The kernels for steps of recurrent layers on a GPU, without one: their source is C++, which the machine's compiler runs place
by place as a GPU would.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lfpgraph.rules import loops as steps_of_layers
from lfpgraph.rules import recurrent_loops
from torch import Tensor, nn

import lfpgraph
from lfpgraph.engine import recurrent
from lfpgraph.native import loops, steps

BEFORE = """
struct Index { unsigned x; };
static Index blockIdx, blockDim, threadIdx;
extern "C" {
float expf(float); float tanhf(float); float fabsf(float); float copysignf(float, float);
double exp(double); double tanh(double); double fabs(double); double copysign(double, double);
}
#define __device__
#define __global__
"""
BEHIND = """
extern "C" int run_all(void **given, long count) {
  blockDim.x = 32;
  for (blockIdx.x = 0; blockIdx.x * 32 < count; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++)
      run_step(*(Places *)given[0], *(int64_t *)given[1], *(int64_t *)given[2], *(int64_t *)given[3]);
  return 0;
}
"""
COMPILER = shutil.which("c++") or shutil.which("g++")


def _forget() -> None:
    recurrent_loops.loop_of_cell.cache_clear()
    recurrent._made.clear()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Have recurrent layers on this machine run by kernels; the list is of their sources."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    made: dict[str, Any] = {}

    def kernel_of(source: str, device: torch.device) -> Any:
        if source not in made:
            code, library = tmp_path / f"{len(made)}.cpp", tmp_path / f"{len(made)}.so"
            code.write_text(BEFORE + source + BEHIND)
            subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", str(library), str(code)], check=True, timeout=60)
            function = ctypes.CDLL(str(library)).run_all
            made[source] = lambda arguments, count, stream: function(arguments, ctypes.c_long(count))
        return made[source]

    of_any_device = loops._loop
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(loops, "kernel_of", kernel_of)
    monkeypatch.setattr(loops, "_loop", lambda writer, write, dtype, device: of_any_device(writer, write, dtype, gpu))
    for module in (recurrent, steps_of_layers):
        monkeypatch.setattr(module, "is_worth_a_loop", lambda x: True)
    _forget()
    yield made  # type: ignore[misc]
    _forget()


class _Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 7, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(14 if options.get("bidirectional") else 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def _feedback(model: nn.Module, composite: str, engine: str, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    wrapped = lfpgraph.wrap(model, composite, engine=engine)
    out = wrapped(x)
    (out * torch.linspace(-1, 1, 3, dtype=x.dtype)).sum().backward()
    lfpgraph.unwrap(wrapped)
    return [out.detach(), *(p.grad for p in model.parameters())]


def _equal(model: nn.Module, dtype: torch.dtype, ways: list[tuple[str, str]], request: pytest.FixtureRequest) -> None:
    """By kernels a layer computes what it computes by torch's operations."""
    torch.manual_seed(0)
    model, x = model.to(dtype), torch.randn(9, 6, 5, dtype=dtype)
    expected = [_feedback(model, *way, x) for way in ways]
    sources = request.getfixturevalue("kernels")
    found = [_feedback(model, *way, x) for way in ways]
    assert len(sources) >= 2  # forward and backward; backward of the first step may be the same
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for way, ours, theirs in zip(ways, found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()), msg=str(way))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_steps_by_kernels(kind: type[nn.RNNBase], request: pytest.FixtureRequest) -> None:
    _equal(_Reader(kind), torch.float64, [("lfp", "static")], request)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"bias": False}),
        (nn.GRU, {"num_layers": 2}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu"}),
    ],
    ids=str,
)
def test_steps_of_many_kinds_by_kernels(
    kind: type[nn.RNNBase], options: dict[str, Any], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    _equal(_Reader(kind, **options), dtype, [("lfp", "static"), ("lfp-epsilon", "static"), ("lfp", "live")], request)


def test_a_step_that_does_not_start_is_an_error() -> None:
    x = torch.ones(2, 3)
    kernel = steps.StepKernel(lambda arguments, count, stream: 719, [True], False)
    with pytest.raises(lfpgraph.errors.LfpGraphError, match="719"):
        kernel.on([loops.place(x)], 2, 3)(0)
    kernel.on([loops.place(x)], 0, 3)(0)  # nothing to do


def test_without_nvrtc_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And a line in the log says so."""
    caplog.set_level("INFO", "lfpgraph")
    monkeypatch.setattr(torch.version, "cuda", "99.9")
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    steps._library.cache_clear()
    assert steps.kernel_of("no source", torch.device("cpu")) is None
    steps._library.cache_clear()
    assert "nvrtcCompileProgram" in caplog.text
