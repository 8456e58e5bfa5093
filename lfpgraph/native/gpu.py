"""The formulas of feedback on a GPU: one kernel each, which torch compiles for an element and runs over whole tensors.

By torch's operations each would be three or four kernels, which pass through memory as often, and more where numbers of half
precision are to be computed with in float32: these kernels do that by themselves.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_one_kernel", "scaled_by_floored"]

log = logging.getLogger("lfpgraph")

# Of one element, in C++; T is float32 for numbers of half precision. `%(0)s` is the first constant.
_FORMULAS = {
    "scale_by_size": "(T s, T w) { return s * (w < T(0) ? -w : w); }",
    "scale_by_floored_size": (
        "(T s, T w, T n, T root) { T r = n / root, a = w < T(0) ? -w : w, f = r * T(%(0)s);"
        " T u = T(1) / (r > T(%(2)s) ? r : T(%(2)s)); return s * (a != a || a > f ? a : f) * (u > T(%(1)s) ? u : T(%(1)s)); }"
    ),
    "epsilon_factor": "(T s, T z) { return s - s * T(%(0)s) / ((z < T(0) ? -z : z) + T(%(0)s)); }",
    "rectified_factor": "(T s, T z) { return z <= T(0) ? T(0) : s - s * T(%(0)s) / (z + T(%(0)s)); }",
    "identity_signal": "(T s, T x, T z) { return s * z / (x + (x < T(0) ? -T(%(0)s) : T(%(0)s))); }",
}
_failed: list[str] = []


def in_one_kernel(name: str, tensors: Sequence[Tensor], *constants: float, **numbers: float) -> Tensor | None:
    """A formula of tensors on a GPU in one kernel; None where there is no such kernel for them.

    Args:
        constants: numbers that a kernel is compiled with. numbers: those that it is given at each call.
    """
    first = tensors[0]
    if _failed or not all(t.is_cuda and t.dtype == first.dtype for t in tensors) or first.is_complex():
        return None
    try:
        return _kernel(name, *constants, **dict.fromkeys(numbers, 1.0))(*tensors, **numbers)  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _failed.append(name)
        log.info("torch cannot compile %s for this GPU, so such formulas run by several kernels: %s", name, error)
        return None


@functools.cache
def _kernel(name: str, *constants: float, **numbers: float) -> Callable[..., Any]:
    text = _FORMULAS[name] % {str(i): repr(constant) for i, constant in enumerate(constants)}
    return torch.cuda.jiterator._create_jit_fn(f"template <typename T> T {name}{text}", **numbers)


def scaled_by_floored(s: Tensor, w: Tensor, share: float, unit: float, norm: Tensor | None = None) -> Tensor | None:
    """`s * max(abs(w), share * rms(w)) * max(unit, 1 / rms(w))`, without the last factor where the unit is 1.

    Args:
        norm: of w, if it is known.

    Returns:
        None where there is no kernel for it.
    """
    if _failed or w.is_complex():
        return None
    root, low = math.sqrt(w.numel()), w.dtype in (torch.float16, torch.bfloat16)
    if norm is None:
        (norm,) = torch._foreach_norm([w], dtype=torch.float32 if low else None)
    if low:
        norm, root = (norm / root).to(w.dtype), 1.0
    tiny = 1.0 if unit == 1 else torch.finfo(w.dtype).tiny
    return in_one_kernel("scale_by_floored_size", (s, w, norm), share, unit, tiny, root=root)
