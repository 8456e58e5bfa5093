"""The machine's C compiler, where it has one, and the functions that are written in C once for all loops."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["DTYPES", "c_compiler", "library"]

log = logging.getLogger("lfpgraph")
_FLAGS = ("-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")

# exp(x) - 1 = 2**n - 1 + 2**n * p, with p = exp(r) - 1 by its series and r at most half of log(2): right to the last digits
# near zero as well, where tanh(x) / x is asked for. The lowest bits of `shifted` are n. All functions of one x are made of one
# exp, `decay`, which the compiler works out once.
_HEAD = """
#include <stdint.h>
#include <string.h>
typedef {type} T;
typedef struct {{ T *start; int64_t step, row; }} Place;
static inline T parts(T x, T *scale) {{
  T shifted = x * (T)1.4426950408889634 + (T){magic}, n = shifted - (T){magic};
  T r = (x - n * (T)0.693145751953125) - n * (T)1.42860682030941723212e-6;
  int{size}_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (int{size}_t)((uint{size}_t)(bits + {bias}) << {digits});
  memcpy(scale, &bits, sizeof bits);
  return {series};
}}
static inline T bounded(T x, T most) {{ return x > most ? most : x; }}
static inline T with_sign_of(T x, T other) {{
  return sizeof(T) == 4 ? __builtin_copysignf(x, other) : __builtin_copysign(x, other);
}}
static inline T size_of(T x) {{ return x < 0 ? -x : x; }}
static inline T decay(T x) {{
  T scale, p = parts(-bounded(size_of(x), (T){most}), &scale);
  return scale + scale * p;
}}
static inline T sigmoid(T x) {{
  T e = decay(x);
  return (x < 0 ? e : 1) / (1 + e);
}}
static inline T apart(T x, T k, T a, T b) {{
  T e = decay(x);
  return k * e / ((1 + a * e) * (1 + b * e));
}}
static inline T decayed(T x) {{ /* decay(x) - 1 */
  T scale, p = parts(-bounded(size_of(x), (T){most}), &scale);
  return (scale - 1) + scale * p;
}}
static inline T hyperbolic(T x) {{
  T e = decayed(2 * x);
  return with_sign_of(e / (e + 2), x);
}}
"""
# A type's name, bits, digits and largest argument of exp, and how many terms of its series there are.
_KINDS = {torch.float32: ("float", 32, 23, 88, 7), torch.float64: ("double", 64, 52, 708, 13)}
DTYPES = tuple(_KINDS)


def library(body: str, dtype: torch.dtype) -> Any:
    """C code for numbers of a type T, compiled and loaded; None without a compiler."""
    kind, size, digits, most, terms = _KINDS[dtype]
    series = "0"
    for k in range(terms, 0, -1):
        series = f"r * ((T){1 / math.factorial(k)!r} + {series})"
    magic, bias = repr(1.5 * 2.0**digits), 2 ** (size - 2 - digits) - 1
    head = _HEAD.format(type=kind, size=size, digits=digits, series=series, magic=magic, bias=bias, most=most)
    return _compiled(head + body, c_compiler())


def c_compiler() -> str | None:
    """The command that compiles C."""
    named = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return named if os.name == "posix" else None


@functools.cache
def _compiled(source: str, command: str | None) -> Any:
    """Nothing of it is left on disk."""
    if command is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        code, made = Path(folder, "loop.c"), Path(folder, "loop.so")
        code.write_text(source)
        for tuned in (["-march=native"], []):
            try:
                whole = [*shlex.split(command), *_FLAGS, *tuned, "-o", str(made), str(code)]
                done = subprocess.run(whole, capture_output=True, text=True, timeout=60)
                if done.returncode == 0:
                    return ctypes.CDLL(str(made))
                why = done.stderr[-500:]
            except (OSError, subprocess.TimeoutExpired) as error:
                why = str(error)
    log.info("the C compiler %s failed, so torch's own operations run what is written in C: %s", command, why)
    return None
