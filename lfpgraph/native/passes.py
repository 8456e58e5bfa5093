"""Formulas of feedback in C: one pass over memory for what torch's operations carry through it three to thirty times.

A tensor's numbers are taken in the order in which they lie in memory, by as many threads as torch would take, of torch's own
OpenMP. Who calls has another way for where there is no compiler, and for numbers that do not lie alike.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compiler import DTYPES, library
from .pass_code import BLOCK, FUNCTIONS, PARTS, code_of

__all__ = ["FUNCTIONS", "LEAST", "Passes", "begin", "is_dense", "known_passes", "lie_alike", "passes_of"]

log = logging.getLogger("lfpgraph")
LEAST = 1 << 14  # numbers from which on a pass is worth that a compiler is started
_GRAIN = 1 << 15  # numbers that are worth a thread of their own, as torch has it


class Passes:
    """The compiled passes for numbers of one type. Tensors are dense, and alike in the order of their numbers (`is_dense`)."""

    def __init__(self, compiled: Any) -> None:
        self._run, self._variance, self._threads = compiled.run, compiled.variance, _threads()
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._run.argtypes, self._run.restype = (number, *[pointer] * 4, *[number] * 3, pointer), None
        self._variance.argtypes, self._variance.restype = (pointer, number, pointer, number, pointer), ctypes.c_double
        self._floored, real = compiled.floored, ctypes.c_double
        self._floored.argtypes = (*[pointer] * 3, number, *[real] * 3, pointer, number, pointer)
        self._floored.restype = real

    def variance(self, x: Tensor) -> float:
        """Of all numbers, the same however many threads there are."""
        found: float = self._variance(x.data_ptr(), x.numel(), _sums(x), self._share(x), self._threads)
        return found

    def floored(self, s: Tensor, w: Tensor, out: Tensor, share: float, unit: float, tiny: float) -> bool:
        """`s * max(abs(w), share * rms(w)) * max(unit, 1 / rms(w))`, without the last factor where the unit is 1.

        The root mean square that is divided by is `tiny` at least. False, and nothing done, where
        the least size is NaN.
        """
        pointers, count = (s.data_ptr(), w.data_ptr(), out.data_ptr()), w.numel()
        least = self._floored(*pointers, count, share, unit, tiny, _sums(w), self._share(w), self._threads)
        return not math.isnan(least)

    def comparison(
        self, s: Tensor | None, x: Tensor, out: Tensor, numbers: Sequence[float], fours: Sequence[float]
    ) -> Tensor:
        """The slopes of a comparison's secants, times s where there is one; see the lines in C for what the numbers are."""
        return self._on("comparison", s, x, out, (*numbers, *fours), len(fours) // 2)

    def secant(self, name: str, s: Tensor | None, x: Tensor, out: Tensor, width: float) -> Tensor:
        """The slope of a function's secant from x - width to x + width, times s where there is one."""
        return self._on(f"secant_{name}", s, x, out, [width, 1 / (2 * width)])

    def _on(
        self, part: str, s: Tensor | None, x: Tensor, out: Tensor, numbers: Sequence[float], widths: int = 0
    ) -> Tensor:
        given = (ctypes.c_double * len(numbers))(*numbers)
        pointers = None if s is None else s.data_ptr(), x.data_ptr(), out.data_ptr()
        self._run(PARTS.index(part), *pointers, given, x.numel(), widths, self._share(x), self._threads)
        return out

    def _share(self, x: Tensor) -> int:
        """How many threads take a share of a tensor's numbers."""
        return min(torch.get_num_threads(), -(-x.numel() // _GRAIN)) if self._threads else 1


def _sums(x: Tensor) -> Any:
    """Room for a number for each block of x."""
    return (ctypes.c_double * -(-x.numel() // BLOCK))()


def is_dense(x: Tensor) -> bool:
    """Whether a tensor's numbers follow each other without gaps, each once: of a plain one, or of channels that come last."""
    return not x.is_neg() and (x.is_contiguous() or x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def lie_alike(s: Tensor, x: Tensor) -> bool:
    """Whether the numbers of two tensors follow each other without gaps in one order."""
    return s.shape == x.shape and s.stride() == x.stride() and is_dense(x)


_known: dict[torch.dtype, Passes | None] = {}
_begun: dict[torch.dtype, threading.Thread] = {}


def begin(dtype: torch.dtype) -> None:
    """Have a thread compile the passes for a type of numbers, unless one has; that takes some tenths of a second once."""
    if dtype in DTYPES and dtype not in _known and dtype not in _begun:
        _begun[dtype] = threading.Thread(target=_compile, args=(dtype,), name="lfpgraph compiles")
        _begun[dtype].start()


def passes_of(dtype: torch.dtype) -> Passes | None:
    """The passes for a type of numbers, once they are compiled; None where there is no compiler."""
    if dtype in DTYPES and dtype not in _known:
        begin(dtype)
        _begun[dtype].join()
        if dtype not in _known:  # a process that was forked off has no thread that began before
            _compile(dtype)
    return _known.get(dtype)


def known_passes(dtype: torch.dtype) -> Passes | None:
    """The passes for a type of numbers, if they are compiled already."""
    return _known.get(dtype)


def _compile(dtype: torch.dtype) -> None:
    try:
        compiled = library(code_of(dtype), dtype)
    except OSError as error:  # a disk that is full, say
        log.info("torch's own operations run what is written in C: %s", error)
        compiled = None
    _known[dtype] = None if compiled is None else Passes(compiled)


@functools.cache
def _threads() -> Any:
    """Three functions of torch's own OpenMP: how threads do something together, and what tells one its place among how many.

    A second OpenMP beside torch's would have threads of its own, as many again. None, and a line in the log, where torch has none
    of GNU's kind.
    """
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        functions = [getattr(torchs, f) for f in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError):
        log.info("torch has no OpenMP of GNU's kind here, so what is written in C runs in one thread")
        return None
    return (ctypes.c_void_p * 3)(*(ctypes.cast(f, ctypes.c_void_p).value for f in functions))
