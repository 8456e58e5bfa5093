"""The formulas of feedback on a GPU: one kernel each, which torch compiles for an element and runs over whole tensors.

By torch's operations each would be three or four kernels, which pass through memory as often, and more where numbers of half
precision are to be computed with in float32: these kernels do that by themselves.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_one_kernel"]

log = logging.getLogger("lfpgraph")

# Of one element, in C++; T is float32 for numbers of half precision. `%s` are the constants.
_FORMULAS = {
    "scale_by_size": "(T s, T w) { return s * (w < T(0) ? -w : w); }",
    "scale_by_floored_size": "(T s, T w, T f) { T a = w < T(0) ? -w : w; return s * (a != a || a > f ? a : f) * T(%s); }",
    "epsilon_factor": "(T s, T z) { return s - s * T(%s) / ((z < T(0) ? -z : z) + T(%s)); }",
    "rectified_factor": "(T s, T z) { return z <= T(0) ? T(0) : s - s * T(%s) / (z + T(%s)); }",
    "identity_signal": "(T s, T x, T z) { return s * z / (x + (x < T(0) ? -T(%s) : T(%s))); }",
}
_failed: list[str] = []


def in_one_kernel(name: str, tensors: Sequence[Tensor], constant: float | None = None) -> Tensor | None:
    """A formula of tensors on a GPU in one kernel; None where there is no such kernel for them."""
    first = tensors[0]
    if _failed or not all(t.is_cuda and t.dtype == first.dtype for t in tensors) or first.is_complex():
        return None
    try:
        return _kernel(name, constant)(*tensors)  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _failed.append(name)
        log.info("torch cannot compile %s for this GPU, so such formulas run by several kernels: %s", name, error)
        return None


@functools.cache
def _kernel(name: str, constant: float | None) -> Callable[..., Any]:
    formula = _FORMULAS[name]
    text = formula % ((repr(constant),) * formula.count("%s")) if constant is not None else formula
    return torch.cuda.jiterator._create_jit_fn(f"template <typename T> T {name}{text}")
