"""The few divisions feedback needs, in one place, in float32 or better.

Signals are rewards per unit of activation, `s = r / a`. Only two formulas ever divide:
the epsilon factor on the output of a linear op, and the identity rule of an activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ZERO_REWARD", "epsilon_factor", "identity_signal", "stabilize"]

ZERO_REWARD = 1e-6  # a reward r on an output of exactly zero enters as the signal r / ZERO_REWARD; spikes read it back
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """Move `z` away from zero by `epsilon` with its own sign, zero counting as positive (LFP eq. 8)."""
    plus_zero = z + 0.0  # minus zero becomes plus zero
    return torch.copysign(torch.full((), epsilon, dtype=z.dtype, device=z.device), plus_zero) + z


def epsilon_factor(s: Tensor, z: Tensor, epsilon: float, positive: bool = False) -> Tensor:
    """Return `s * z / stabilize(z, epsilon)`, the signal that the epsilon rule lets through an output z.

    Written as `s - s * epsilon / (abs(z) + epsilon)`: the same number with one division, and right
    for infinite z. Any shape; s and z alike. With `positive`, z has no negative entry.
    """
    if epsilon == 0:
        return s
    if z.dtype in _LOW_PRECISION:
        return epsilon_factor(s.float(), z.float(), epsilon, positive).to(s.dtype)
    if z.is_complex():
        return s * (1 - epsilon / (z.abs() + epsilon))
    size = z + epsilon if positive else z.abs() + epsilon
    return torch.addcdiv(s, s, size, value=-epsilon)


def identity_signal(s: Tensor, x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """Signal of x for an activation z = f(x) that hands its reward on unchanged: `s * z / stabilize(x)`.

    With epsilon 0 an x of exactly zero receives no signal. Source: LFP section 3; AttnLRP eq. 9.
    """
    if x.is_complex() or z.is_complex():
        return _complex_identity(s, x, z, epsilon)
    if z.dtype in _LOW_PRECISION or x.dtype in _LOW_PRECISION:
        return identity_signal(s.float(), x.float(), z.float(), epsilon).to(x.dtype)
    if epsilon == 0:
        return (s * z / x).masked_fill(x == 0, 0.0)
    return s * z / stabilize(x, epsilon)


def _complex_identity(s: Tensor, x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """The same where x or z is complex: the reward of a is Re(conj(a) * s)."""
    reward = s * z.conj()
    if not x.is_complex():
        return identity_signal(reward.real, x, torch.ones_like(x), epsilon)
    size = x.abs()
    toward = torch.where(size == 0, torch.zeros_like(x), x / size.clamp_min(torch.finfo(size.dtype).tiny))
    return reward * toward / torch.where(size == 0, 1.0, size + epsilon)
