"""A step of a loop of `loops` as a kernel of a GPU: compiled by NVRTC, which comes with torch, and started by the driver.

torch's own way to compile a formula (`gpu`) takes eight tensors and makes new ones. The steps of a recurrent layer read up to
twenty, and write into the middle of larger ones.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LfpGraphError, one_line

__all__ = ["RunningKernel", "StepKernel", "kernel_of", "source_of"]

log = logging.getLogger("lfpgraph")
_THREADS = 128  # of a block
_SOURCE = """
typedef long long int64_t;
typedef {type} T;
struct Place {{ T *start; int64_t step, row; }};
struct Places {{ Place at[{tensors}]; }};
static __device__ inline T sigmoid(T x) {{ return 1 / (1 + {exp}(-x)); }}
static __device__ inline T hyperbolic(T x) {{ return {tanh}(x); }}
static __device__ inline T apart(T x, T k, T a, T b) {{
  T e = {exp}(-{fabs}(x));
  return k * e / ((1 + a * e) * (1 + b * e));
}}
static __device__ inline T with_sign_of(T x, T other) {{ return {copysign}(x, other); }}

extern "C" __global__ void run_step(Places places, int64_t rows, int64_t width, int64_t t) {{
  int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  if (i >= rows * width) return;
  int64_t r = i / width, j = i - r * width;
  {pointers}
  {lines}
}}
"""
_TYPES = {torch.float32: ("float", "f"), torch.float64: ("double", "")}
_Start = Callable[
    [Any, int, Any], int
]  # of the arguments, the number of threads and the stream; 0 where it has started


def source_of(lines: Sequence[str], tensors: int, dtype: torch.dtype) -> str:
    """What a kernel does to the numbers of one place, `j` of row `r`: lines of C, as those of a loop."""
    kind, end = _TYPES[dtype]
    names = {name: name + end for name in ("exp", "tanh", "copysign", "fabs")}
    pointers = (
        f"T *p{i} = places.at[{i}].start + t * places.at[{i}].step + r * places.at[{i}].row;" for i in range(tensors)
    )
    return _SOURCE.format(type=kind, tensors=tensors, pointers="\n  ".join(pointers), lines="\n  ".join(lines), **names)


class StepKernel:
    """In place of a `Loop`, on a GPU.

    Attributes:
        has, twice: as of a `Loop`.
    """

    panel = 0  # no product is worked out beside it

    def __init__(self, start: _Start, has: list[bool], twice: bool) -> None:
        self._start, self.has, self.twice = start, has, twice

    def on(self, places: Sequence[tuple[int, int, int]], rows: int, width: int) -> RunningKernel:
        """What does a step, given its number, on the stream that is current now; on tensors given by their `place`."""
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_initialized() else None
        return RunningKernel(self._start, places, rows, width, stream)


class RunningKernel:
    """A kernel and its tensors; called with the number of a step."""

    def __init__(
        self, start: _Start, places: Sequence[tuple[int, int, int]], rows: int, width: int, stream: int | None
    ) -> None:
        self._table = (ctypes.c_int64 * (3 * len(places)))(*itertools.chain.from_iterable(places))
        self._numbers = [ctypes.c_int64(n) for n in (rows, width, 0)]
        pointers = map(ctypes.addressof, (self._table, *self._numbers))
        self._arguments = (ctypes.c_void_p * 4)(*pointers)
        self._start, self._count, self._stream = start, rows * width, stream

    def __call__(self, step: int) -> None:
        self._numbers[2].value = step
        if self._count and (error := self._start(self._arguments, self._count, self._stream)):
            raise LfpGraphError(
                f"the GPU did not start a step of a recurrent layer (CUDA's error {error}). Run with CUDA_LAUNCH_BLOCKING=1 to "
                "see which operation before it failed."
            )

    def give(self, i: int, x: Tensor) -> None:
        """Let the i-th tensor be another of the same layout."""
        self._table[3 * i] = x.data_ptr()


@functools.cache
def kernel_of(source: str, device: torch.device) -> _Start | None:
    """What starts a kernel; None, and a line in the log, where it cannot be compiled."""
    try:
        if torch.version.cuda is None:
            raise _Failed("this build of torch is not for CUDA")
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # this thread has a context from now on
            major, minor = torch.cuda.get_device_capability(device)
            return _loaded(_compiled(source, f"sm_{major}{minor}"))
    except (OSError, AttributeError, _Failed) as error:
        why = one_line(error, 300)
        log.info(
            "torch's own operations run the steps of recurrent layers, since no kernel can be made of them: %s", why
        )
        return None


class _Failed(Exception):
    """A call of NVRTC or of the driver has failed."""


def _check(code: int, what: str) -> None:
    if code:
        raise _Failed(f"{what} answers {code}")


def _compiled(source: str, architecture: str) -> bytes:
    """What NVRTC makes of the source."""
    nvrtc, program = _library("nvrtcCompileProgram"), ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"step.cu", 0, None, None),
        "nvrtcCreateProgram",
    )
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    code = nvrtc.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    if code:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        said = ctypes.create_string_buffer(max(size.value, 1))
        nvrtc.nvrtcGetProgramLog(program, said)
        raise _Failed(f"NVRTC answers {code}: {said.value.decode(errors='replace')}")
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
    made = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, made), "nvrtcGetCUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return made.raw


def _loaded(binary: bytes) -> _Start:
    """A compiled kernel in the memory of the device that is current."""
    driver, module, function = _library("cuLaunchKernel"), ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuModuleLoadData(ctypes.byref(module), binary), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, b"run_step"), "cuModuleGetFunction")
    launch = driver.cuLaunchKernel
    launch.argtypes = (ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    launch.restype = ctypes.c_int

    def start(arguments: Any, count: int, stream: Any) -> int:
        blocks = (count + _THREADS - 1) // _THREADS
        found: int = launch(function, blocks, 1, 1, _THREADS, 1, 1, 0, stream, arguments, None)
        return found

    return start


@functools.cache
def _library(function: str) -> Any:
    """The library that has a function of NVRTC or of the driver: torch's, which needs both, or one of its own name."""
    major = str(torch.version.cuda).partition(".")[0]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    names = [str(Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"), "libcuda.so.1", f"libnvrtc.so.{major}"]
    for name in (*names, *map(str, sorted(packages.glob(f"*/lib/libnvrtc.so.{major}")))):
        try:
            found = ctypes.CDLL(name)
            getattr(found, function)
            return found
        except (OSError, AttributeError):
            continue
    raise OSError(f"no library has {function}")
