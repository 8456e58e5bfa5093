"""Activations in C, and the slopes of their secants, as `passes` takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["FUNCTIONS", "SLOPES", "functions_of", "slope_of"]

_DIFFERENCES = ("gelu", "gelu_tanh", "silu", "mish", "hardswish", "elu")  # whose secants are two values of theirs
_SCALES = {"sigmoid": 1.0, "tanh": 2.0}  # f(x) = scale * sigmoid(scale * x), but for a constant: see `operations.apart`
FUNCTIONS = (*_DIFFERENCES, *_SCALES)
SLOPES = (*_DIFFERENCES, "apart")

# erf(x) = x * P(x * x) / Q(x * x) up to the x from which on it is 1. The largest error is 2e-8 and 4e-17 of erf(x):
# least squares with weights raised where errors were largest, in sixty digits.
_ERF = {
    torch.float32: (
        3.93,
        (1.128379145934263531, 0.1906037801344968266, 0.05276588519890640318, 0.003771859330309037341,
         0.0002846283928883699582, 2.043179782642796089e-6),
        (1.0, 0.5022509471317014486, 0.1141826010435217221, 0.01498175075507113239, 0.001163333434523016294,
         0.00003800740468437718637),
    ),
    torch.float64: (
        5.95,
        (1.128379167095512535, 0.2204798313084154191, 0.06617525995873768295, 0.006906192833396746159,
         0.0008571368620249194907, 0.00005712938028713134875, 3.910167418613778247e-6, 1.701164222283368293e-7,
         6.777031477453228532e-9, 1.725049004621970645e-10, 3.331955143236690793e-12, 2.211567044581791334e-14,
         1.554067658913235739e-17),
        (1.0, 0.5287284963581303085, 0.1348891292936824539, 0.022020171312737888, 0.00256990603451959668,
         0.0002266523880672462496, 0.00001554285708483289159, 8.376361169601690768e-7, 3.526764947251950628e-8,
         1.127733566221627386e-9, 2.553325820089747977e-11, 3.304839147484132263e-13, 8.770872924421687926e-16),
    ),
}  # fmt: skip

_BODY = """
static inline T error_function(T x) {{
  T z = bounded(x, (T){most}), u = z * z, e = z * ({over}) / ({under});
  return x > (T){most} ? 1 : x < -(T){most} ? -1 : e;
}}
static inline T gelu(T x) {{ return x * (T)0.5 * (1 + error_function(x * (T)0.70710678118654752440)); }}
static inline T gelu_tanh(T x) {{
  T inner = (T)0.79788456080286535588 * (x + (T)0.044715 * x * x * x);
  return x * (T)0.5 * (1 + hyperbolic(inner));
}}
static inline T silu(T x) {{ return x * sigmoid(x); }}
static inline T mish(T x) {{ /* x * tanh(log(1 + exp(x))) */
  T e = decay(x), n = x < 0 ? e * (e + 2) : 1 + 2 * e;
  return x * n / (n + (x < 0 ? 2 : 2 * e * e));
}}
static inline T hardswish(T x) {{ return x * (x < -3 ? 0 : bounded(x + 3, 6)) * (T)(1.0 / 6); }}
static inline T elu(T x) {{ return x > 0 ? x : decayed(x); }}

/* numbers: half of the width, and one over the width; for `apart` a factor of x, and its own three */
#define DIFFERENCE(f) static inline T slope_##f(T x, const T *n) {{ return (f(x + n[0]) - f(x - n[0])) * n[1]; }}
{differences}
static inline T slope_apart(T x, const T *n) {{ return apart(n[2] * x, n[3], n[4], n[5]); }}
"""


def functions_of(dtype: torch.dtype) -> str:
    """The functions for a type of numbers; of each of `SLOPES` the slope of a secant, by the numbers of `slope_of`."""
    most, over, under = _ERF[dtype]
    differences = "\n".join(f"DIFFERENCE({name})" for name in _DIFFERENCES)
    return _BODY.format(most=most, over=_polynomial(over), under=_polynomial(under), differences=differences)


def slope_of(function: str, width: float) -> tuple[str, list[float]]:
    """Which of `SLOPES` is that of a function, one of `FUNCTIONS`, and its numbers for a secant from x - width to x + width."""
    scale, by = _SCALES.get(function, 0.0), 1 / (2 * width)
    near, far = math.exp(-scale * width), math.exp(scale * width)
    numbers = [width, by, scale, scale * (far - near) * by, near, far]
    return "apart" if scale else function, numbers


def _polynomial(terms: Sequence[float]) -> str:
    """In u, as C."""
    found = f"(T){terms[-1]!r}"
    for term in terms[-2::-1]:
        found = f"((T){term!r} + u * {found})"
    return found
