"""The few divisions feedback needs, in one place, in float32 or better.

Signals are rewards per unit of activation, `s = r / a`. Only two formulas ever divide:
the epsilon factor on the output of a linear op, and the identity rule of an activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["epsilon_factor", "identity_signal", "stabilize"]

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """Move `z` away from zero by `epsilon` with its own sign, zero counting as positive (LFP eq. 8)."""
    plus_zero = z + 0.0  # minus zero becomes plus zero
    return torch.copysign(torch.full((), epsilon, dtype=z.dtype, device=z.device), plus_zero).add_(z)


def epsilon_factor(s: Tensor, z: Tensor, epsilon: float, positive: bool = False) -> Tensor:
    """Return `s * z / stabilize(z, epsilon)`, the signal that the epsilon rule lets through an output z.

    Written as `s - s * epsilon / (abs(z) + epsilon)`: the same number with one division, and right
    for infinite z. Any shape; s and z alike. With `positive`, z has no negative entry.
    """
    if epsilon == 0:
        return s
    if z.dtype in _LOW_PRECISION:
        return epsilon_factor(s.float(), z.float(), epsilon, positive).to(s.dtype)
    size = z + epsilon if positive else z.abs().add_(epsilon)
    return torch.addcdiv(s, s, size, value=-epsilon)


def identity_signal(s: Tensor, x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Signal of x for an activation z = f(x) that hands its reward on unchanged: `s * z / stabilize(x)`.

    With epsilon 0 an x of exactly zero receives no signal. Source: LFP section 3; AttnLRP eq. 9.
    """
    if z.dtype in _LOW_PRECISION or x.dtype in _LOW_PRECISION:
        return identity_signal(s.float(), x.float(), z.float(), epsilon).to(x.dtype)
    if epsilon == 0:
        return torch.where(x == 0, torch.zeros_like(s), s * z / torch.where(x == 0, torch.ones_like(x), x))
    return (s * z).div_(stabilize(x, epsilon))
