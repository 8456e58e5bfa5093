"""The few formulas of feedback that divide or scale, in one place; divisions are in float32 or better.

Signals are rewards per unit of activation, `s = r / a`. Only two formulas ever divide: the epsilon factor on the output
of a linear operation, and the identity rule of an activation. `kernels` makes them quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import kernels
from .kernels import DECOMPOSITIONS, KERNELS, LOW_PRECISION, SMALL, floor_and_unit

__all__ = [
    "ZERO_REWARD",
    "call_operation",
    "epsilon_factor",
    "guarded",
    "identity_signal",
    "is_zero",
    "scale_by_floored_size",
    "scale_by_size",
    "stabilize",
]

ZERO_REWARD = 1e-6  # a reward r on an output of exactly zero enters as the signal r / ZERO_REWARD; spikes read it back
_ops = torch.ops.lfpgraph
_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN = {Tensor, torch.nn.Parameter, float, bool, int, str, tuple}


def is_zero(w: Tensor) -> bool:
    """Whether a tensor is wholly zero; of most, the first entry tells."""
    w = w.detach()
    if w.layout is not torch.strided:
        w = (w.coalesce() if w.is_sparse else w).values()
    if w.numel() and bool(w[(0,) * w.dim()] != 0):
        return False
    return not bool(w.any())


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """Move `z` away from zero by `epsilon` with its own sign, zero counting as positive (LFP eq. 8)."""
    if z.is_complex():
        return z + epsilon * torch.where(z == 0, 1.0, z.sgn())
    plus_zero = z + 0.0  # minus zero becomes plus zero
    return torch.copysign(torch.full((), epsilon, dtype=z.dtype, device=z.device), plus_zero) + z


def guarded(x: Tensor, epsilon: float) -> Tensor:
    """x, kept away from zero by far less than epsilon (Note [Sums of two forms] in `live.schedule`)."""
    return stabilize(x, epsilon * (1e-12 if x.dtype == torch.float64 else 1e-6))


def scale_by_size(s: Tensor, w: Tensor, over: bool = False) -> Tensor:
    """Return `s * abs(w)`, the feedback of a parameter w with the signal s (LFP eq. 6); written over s if asked for."""
    if is_small(s, w):
        return kernels.scale_by_size(s, w)
    return call_operation(
        _ops.scale_by_size_.default if over and s.dtype == w.dtype else _ops.scale_by_size.default, s, w
    )


def scale_by_floored_size(s: Tensor, w: Tensor, share: float, unit: float = 1.0, over: bool = False) -> Tensor:
    """Return `s * max(abs(w), share * rms(w)) * max(unit, 1 / rms(w))`, for a w of at least one entry; over s if asked for.

    Without the last factor where the unit is 1.
    """
    if w.is_complex():
        floor, own = floor_and_unit(w, share, unit)
        return s * torch.maximum(w.abs(), floor) * (1.0 if own is None else own)
    operation = _ops.scale_by_floored_size_ if over and s.dtype == w.dtype else _ops.scale_by_floored_size
    return call_operation(operation.default, s, w, share, unit)


def epsilon_factor(s: Tensor, z: Tensor, epsilon: float, positive: bool = False, over: bool = False) -> Tensor:
    """Return `s * z / stabilize(z, epsilon)`, the signal that the epsilon rule lets through an output z.

    Written as `s - s * epsilon / (abs(z) + epsilon)`: the same number with one division, and right
    for infinite z. Any shape; s and z alike. With `positive`, z has no negative entry. With `over`, it is written over
    s if it can be.
    """
    if epsilon == 0:
        return s
    if z.is_complex():
        return s * (1 - epsilon / (z.abs() + epsilon))
    if is_small(s, z):
        return kernels.epsilon_factor(s, z, epsilon, positive)
    over = over and s.dtype == z.dtype and s.shape == z.shape
    return call_operation((_ops.epsilon_factor_ if over else _ops.epsilon_factor).default, s, z, epsilon, positive)


def identity_signal(s: Tensor, x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Signal of x for an activation z = f(x) that hands its reward on unchanged: `s * z / stabilize(x)`.

    With epsilon 0 an x of exactly zero receives no signal. Source: LFP section 3; AttnLRP eq. 9.
    """
    if is_small(s, x) and epsilon and x.dtype == torch.float32 == z.dtype:
        return kernels.identity_signal(s, x, z, epsilon)
    if x.is_complex() or z.is_complex():
        return _complex_identity(s, x, z, epsilon)
    if epsilon == 0:
        if z.dtype in LOW_PRECISION or x.dtype in LOW_PRECISION:
            return identity_signal(s.float(), x.float(), z.float(), epsilon).to(x.dtype)
        return (s * z / x).masked_fill(x == 0, 0.0)
    return call_operation(_ops.identity_signal.default, s, x, z, epsilon)


def _complex_identity(s: Tensor, x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """The same where x or z is complex: the reward of a is Re(conj(a) * s)."""
    reward = s * z.conj()
    if not x.is_complex():
        return identity_signal(reward.real, x, torch.ones_like(x), epsilon)
    size = x.abs()
    toward = torch.where(size == 0, torch.zeros_like(x), x / size.clamp_min(torch.finfo(size.dtype).tiny))
    return reward * toward / torch.where(size == 0, 1.0, size + epsilon)


def call_operation(operation: Callable[..., Any], *args: Any, kernel: Callable[..., Tensor] | None = None) -> Tensor:
    """Run one of our operations; past the dispatcher where nobody traces, by its own kernel or the one that is given.

    Its formula is run where autograd is to record it, and on tensors made of others (distributed ones, say), which know
    torch's operations alone.
    """
    found: Tensor
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        found = DECOMPOSITIONS[operation](*args)
    elif is_eager(*args) and not args[0].is_meta:
        found = (kernel or KERNELS[operation])(*args)
    elif is_unseen() and operation in DECOMPOSITIONS and any(map(is_traceable_wrapper_subclass, args)):
        found = DECOMPOSITIONS[operation](*args)
    else:
        found = operation(*args)
    return found


def is_small(s: Tensor, x: Tensor) -> bool:
    """Whether plain tensors are so small that it would take longer to choose a kernel than to run the formula."""
    return (
        type(s) is Tensor
        and type(x) in _TENSORS
        and s.numel() <= SMALL
        and not s.is_cuda
        and not torch.is_grad_enabled()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def is_eager(*args: Any) -> bool:
    """Whether plain tensors meet no tracer and no transform."""
    return is_unseen() and _PLAIN.issuperset(map(type, args))


def is_unseen() -> bool:
    """Whether no tracer and no transform sees what runs."""
    return not torch._C._len_torch_dispatch_stack() and torch._C._functorch.peek_interpreter_stack() is None
