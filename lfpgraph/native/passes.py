"""Formulas of feedback in C: one pass over memory for what torch's operations carry through it three to thirty times.

A tensor's numbers are taken in the order in which they lie in memory, by as many threads as torch would take, of torch's own
OpenMP. Who calls has another way for where there is no compiler, and for numbers that do not lie alike.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compiler import DTYPES, library
from .functions import SLOPES, functions_of, slope_of

__all__ = ["LEAST", "Passes", "begin", "is_dense", "known_passes", "passes_of"]

log = logging.getLogger("lfpgraph")
LEAST = 1 << 14  # numbers from which on a pass is worth that a compiler is started
_BLOCK = 512  # numbers of which the sum, or what is worked out on the way, stays in the nearest cache
_GRAIN = 1 << 15  # numbers that are worth a thread of their own, as torch has it
_PARTS = ("floored", "comparison", *(f"secant_{name}" for name in SLOPES))

# A part works on the numbers from `start` to `end`. Without signals `s` a secant's slope itself is asked for.
_BODY = """
typedef struct {{ const T *s, *x; T *out; const double *numbers; int64_t count, widths; }} Job;
typedef void Part(const Job *, int64_t, int64_t);
#define BLOCK {block}

{functions}
#define SECANT(f) \\
static inline __attribute__((always_inline)) void f##_from(const Job *job, int64_t start, int64_t end, int scaled) {{ \\
  const T *s = job->s, *x = job->x; \\
  T *out = job->out, n[6]; \\
  for (int i = 0; i < 6; i++) n[i] = job->numbers[i]; \\
  _Pragma("omp simd") \\
  for (int64_t j = start; j < end; j++) {{ \\
    T slope = slope_##f(x[j], n); \\
    out[j] = scaled ? s[j] * slope : slope; \\
  }} \\
}} \\
static void secant_##f(const Job *job, int64_t start, int64_t end) {{ \\
  if (job->s) f##_from(job, start, end, 1); else f##_from(job, start, end, 0); \\
}}
{secants}

/* numbers: the least size, and a factor */
static void floored(const Job *job, int64_t start, int64_t end) {{
  const T *s = job->s, *w = job->x, least = job->numbers[0], by = job->numbers[1];
  T *out = job->out;
  #pragma omp simd
  for (int64_t j = start; j < end; j++) {{
    T size = w[j] < 0 ? -w[j] : w[j];
    out[j] = by * s[j] * (size < least ? least : size);
  }}
}}

/* numbers: what is compared with, the spread, a weight; of each width, the widest first, itself and what the slope times spread
   and weight is within it. Widths come in fours; those below zero are none. */
static void comparison(const Job *job, int64_t start, int64_t end) {{
  const double *numbers = job->numbers;
  const T number = numbers[0], spread = numbers[1], by = spread * (T)numbers[2];
  for (; start < end; start += BLOCK) {{
    const T *s = job->s ? job->s + start : 0, *x = job->x + start;
    T *out = job->out + start, slope[BLOCK] = {{0}};
    int64_t size = end - start < BLOCK ? end - start : BLOCK;
    for (int64_t k = 0; k < job->widths; k += 4) {{
      const double *four = numbers + 3 + 2 * k;
      const T a = four[0], b = four[2], c = four[4], d = four[6];
      const T in_a = (T)four[1] / by, in_b = (T)four[3] / by, in_c = (T)four[5] / by, in_d = (T)four[7] / by;
      #pragma omp simd
      for (int64_t j = 0; j < size; j++) {{
        T away = (x[j] - number) / spread, found = slope[j];
        away = away < 0 ? -away : away;
        found = a - away > 0 ? in_a : found;
        found = b - away > 0 ? in_b : found;
        found = c - away > 0 ? in_c : found;
        slope[j] = d - away > 0 ? in_d : found;
      }}
    }}
    if (s) {{
      #pragma omp simd
      for (int64_t j = 0; j < size; j++) out[j] = s[j] * slope[j];
    }} else memcpy(out, slope, size * sizeof(T));
  }}
}}

static Part *const parts_of[] = {{ {parts} }};
typedef struct {{ void (*start)(void (*)(void *), void *, unsigned, unsigned); int (*place)(void), (*places)(void); }} Threads;
typedef struct {{ Part *part; const Job *job; const Threads *threads; }} Share;
static void take_share(void *given) {{ /* of whole blocks, so that nothing depends on how many threads there are */
  const Share *share = given;
  int64_t count = share->job->count, blocks = (count + BLOCK - 1) / BLOCK, i = share->threads->place();
  int64_t n = share->threads->places(), start = blocks * i / n * BLOCK, end = blocks * (i + 1) / n * BLOCK;
  share->part(share->job, start, end < count ? end : count);
}}
static void in_threads(Part *part, const Job *job, int64_t n, const Threads *threads) {{
  Share share = {{ part, job, threads }};
  if (n > 1) threads->start(take_share, &share, n, 0); else part(job, 0, job->count);
}}
void run(int64_t part, const T *s, const T *x, T *out, const double *numbers, int64_t count, int64_t widths, int64_t n,
         const Threads *threads) {{
  Job job = {{ s, x, out, numbers, count, widths }};
  in_threads(parts_of[part], &job, n, threads);
}}

/* The sum of each block's distances from the mean, or of their squares. */
typedef struct {{ Job job; double mean, *sums; }} Sums;
static inline __attribute__((always_inline)) void sums_of(const Sums *given, int64_t start, int64_t end, int squared) {{
  const T mean = given->mean;
  for (; start < end; start += BLOCK) {{
    const T *x = given->job.x + start;
    int64_t size = end - start < BLOCK ? end - start : BLOCK;
    T sum = 0;
    #pragma omp simd reduction(+: sum)
    for (int64_t j = 0; j < size; j++) {{
      T d = x[j] - mean;
      sum += squared ? d * d : d;
    }}
    given->sums[start / BLOCK] = sum;
  }}
}}
static void distances(const Job *job, int64_t start, int64_t end) {{ sums_of((const Sums *)job, start, end, 0); }}
static void squares(const Job *job, int64_t start, int64_t end) {{ sums_of((const Sums *)job, start, end, 1); }}
double variance(const T *x, int64_t count, double *sums, int64_t n, const Threads *threads) {{
  int64_t blocks = (count + BLOCK - 1) / BLOCK;
  Sums given = {{ {{ 0, x, 0, 0, count, 0 }}, 0, sums }};
  double total = 0, of_squares = 0;
  in_threads(distances, &given.job, n, threads);
  for (int64_t i = 0; i < blocks; i++) total += sums[i];
  given.mean = total / count;
  in_threads(squares, &given.job, n, threads);
  for (int64_t i = 0; i < blocks; i++) of_squares += sums[i];
  return of_squares / count;
}}
"""


class Passes:
    """The compiled passes for numbers of one type. Tensors are dense, and alike in the order of their numbers (`is_dense`)."""

    def __init__(self, compiled: Any) -> None:
        self._run, self._variance, self._threads = compiled.run, compiled.variance, _threads()
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._run.argtypes, self._run.restype = (number, *[pointer] * 4, *[number] * 3, pointer), None
        self._variance.argtypes, self._variance.restype = (pointer, number, pointer, number, pointer), ctypes.c_double

    def variance(self, x: Tensor) -> float:
        """Of all numbers, the same however many threads there are."""
        sums = torch.empty(-(-x.numel() // _BLOCK), dtype=torch.float64, device="cpu")
        found: float = self._variance(x.data_ptr(), x.numel(), sums.data_ptr(), self._share(x), self._threads)
        return found

    def floored(self, s: Tensor, w: Tensor, out: Tensor, least: float, by: float) -> Tensor:
        """`by * s * max(abs(w), least)`."""
        return self._on("floored", s, w, out, (least, by))

    def comparison(
        self, s: Tensor | None, x: Tensor, out: Tensor, numbers: Sequence[float], fours: Sequence[float]
    ) -> Tensor:
        """The slopes of a comparison's secants, times s where there is one; see the lines in C for what the numbers are."""
        return self._on("comparison", s, x, out, (*numbers, *fours), len(fours) // 2)

    def secant(self, name: str, s: Tensor | None, x: Tensor, out: Tensor, width: float) -> Tensor:
        """The slope of a function's secant from x - width to x + width, times s where there is one."""
        slope, numbers = slope_of(name, width)
        return self._on(f"secant_{slope}", s, x, out, numbers)

    def _on(
        self, part: str, s: Tensor | None, x: Tensor, out: Tensor, numbers: Sequence[float], widths: int = 0
    ) -> Tensor:
        given = (ctypes.c_double * len(numbers))(*numbers)
        pointers = None if s is None else s.data_ptr(), x.data_ptr(), out.data_ptr()
        self._run(_PARTS.index(part), *pointers, given, x.numel(), widths, self._share(x), self._threads)
        return out

    def _share(self, x: Tensor) -> int:
        """How many threads take a share of a tensor's numbers."""
        return min(torch.get_num_threads(), -(-x.numel() // _GRAIN)) if self._threads else 1


def is_dense(x: Tensor) -> bool:
    """Whether a tensor's numbers follow each other without gaps, each once: of a plain one, or of channels that come last."""
    return not x.is_neg() and (x.is_contiguous() or x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


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
    written = {"functions": functions_of(dtype), "parts": ", ".join(_PARTS)}
    secants = "\n".join(f"SECANT({name})" for name in SLOPES)
    try:
        compiled = library(_BODY.format(block=_BLOCK, secants=secants, **written), dtype)
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
