"""Weights that are conductances of memory devices: bounded, moved by whole pulses, each of which does less the further it got."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...errors import PolicyError, check_choice
from .base import Pairs, Policy, checked

__all__ = ["ElectronicSynapses"]


class ElectronicSynapses(Policy):
    """What the optimizer wants of a weight is turned into pulses to a device, and the weight is what the device then conducts.

    A device that has had P of P_max pulses conducts (Chen, Peng and Yu 2018, NeuroSim+, eq. 1 to 3)

        up:    G = B (1 - exp(-P / A)) + G_min        B = (G_max - G_min) / (1 - exp(-P_max / A))
        down:  G = -B (1 - exp((P - P_max) / A)) + G_max

    written here with `G_min = 0`, `G_max = 1`, `u = P / P_max` and the nonlinearity `v = P_max / A`, whose limit at 0 is G = u:

        up:    g = (1 - exp(-v u)) / (1 - exp(-v))    down:  g = 1 - (1 - exp(-v (1 - u))) / (1 - exp(-v))

    A step reads u off the curve of its direction, adds `n / levels` for n pulses, stops at the ends, and reads g. The weight of
    one device is `limit (2 g - 1)`, and a pulse of a linear device moves it by `2 limit / levels`; n is the optimizer's step over
    that, made whole. `unidirectional=True` is for devices that only go up, as phase change memory does: the weight is
    `limit (g_plus - g_minus)` of a pair, pulses go to the one that moves it the wanted way, and where one of a pair has reached
    `refresh`, both are written anew with the weight as it is and the other at 0 (Burr et al. 2015, IEEE TED 62, section II).

    Weights are written to the nearest level when the policy is attached. Use SGD or an optimizer without weight decay.

    Args:
        levels: P_max, of one device. nonlinearity: v, above 0 or 0; one number, or those of up and down.
        limit: the largest size of a weight; None for twice the largest of each parameter when the policy is attached.
        rounding: "nearest" loses what is no whole pulse; "carry" keeps it for the next step (in a memory beside the device:
            Nandakumar et al. 2020, mixed precision); "random" rounds up as often as the rest says.
        refresh: of a pair, from this conductance on. seed: of the draws.

    Raises:
        PolicyError: values out of range.
    """

    def __init__(
        self, levels: int = 64, nonlinearity: float | tuple[float, float] = 0.0, *, limit: float | None = None,
        unidirectional: bool = False, rounding: str = "carry", refresh: float = 0.9, seed: int = 0, **names: Any,
    ) -> None:  # fmt: skip
        super().__init__(**names)
        check_choice("rounding", rounding, ("nearest", "carry", "random"), PolicyError)
        both = nonlinearity if isinstance(nonlinearity, tuple) else (nonlinearity, nonlinearity)
        self.up, self.down = (checked("nonlinearity", v, 0.0, 30.0) for v in both)
        self.levels = int(checked("levels", levels, 1, 2**24))
        self.limit = None if limit is None else checked("limit", limit, 0.0, math.inf)
        self.unidirectional, self.rounding = unidirectional, rounding
        self.refresh = checked("refresh", refresh, 0.0, 1.0)
        self.limits: dict[str, Tensor] = {}
        self.minus: dict[str, Tensor] = {}
        self.rest: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._moving: list[tuple[str, Tensor, Tensor]] = []

    def start(self, parameters: Pairs, optimizer: Optimizer) -> None:
        self.limits, self.minus, self.rest, self._moving = {}, {}, {}, []
        for name, p in parameters:
            if p.dtype not in (torch.float32, torch.float64):
                raise PolicyError(
                    f"ElectronicSynapses: {name} is {p.dtype}, too coarse for {self.levels} levels; keep it in float32"
                )
            w = p.detach()
            largest = (
                2 * (w.abs().max() if w.numel() else w.new_zeros(()))
                if self.limit is None
                else w.new_tensor(self.limit)
            )
            self.limits[name] = torch.where(largest > 0, largest, 1.0)  # 1 for a wholly zero parameter
            written, self.minus[name] = self._written(self.limits[name], w)
            p.copy_(written)

    def apply(self, parameters: Pairs) -> None:
        missing = [name for name, _ in parameters if name not in self.limits]
        if missing:
            raise PolicyError(
                f"ElectronicSynapses has to be attached to an optimizer, which writes {missing[0]} to devices first"
            )
        self._moving = [(name, p, p.detach().clone()) for name, p in parameters]

    def after(self) -> None:
        for name, p, before in self._moving:
            limit, minus = (values[name].to(p.device) for values in (self.limits, self.minus))
            linear = self.levels / (
                (1 if self.unidirectional else 2) * limit
            )  # pulses that move a linear device's weight by 1
            pulses = self._whole(name, (p.detach() - before) * linear)
            n, moved = pulses / self.levels, pulses != 0
            if self.unidirectional:
                plus = _moved(before / limit + minus, n.clamp_min(0), self.up)
                minus = _moved(minus, (-n).clamp_min(0), self.up)
                w, full = limit * (plus - minus), torch.maximum(plus, minus) >= self.refresh
                written, other = self._written(limit, w)
                w, self.minus[name], moved = (
                    torch.where(full, written, w),
                    torch.where(full, other, minus),
                    moved | full,
                )
            else:
                g = (before / limit + 1) / 2
                w = limit * (2 * torch.where(n > 0, _moved(g, n, self.up), 1 - _moved(1 - g, -n, self.down)) - 1)
            p.copy_(torch.where(moved, w, before))  # no rounding where nothing has happened
        self._moving = []

    def _whole(self, name: str, pulses: Tensor) -> Tensor:
        if self.rounding == "random":
            drawn = torch.rand(pulses.shape, generator=self._generator, dtype=pulses.dtype).to(pulses.device)
            return (pulses + drawn).floor()
        if self.rounding == "carry":
            pulses = pulses + self.rest[name].to(pulses) if name in self.rest else pulses
        whole = pulses.round()
        if self.rounding == "carry":
            self.rest[name] = pulses - whole
        return whole

    def _written(self, limit: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The weights nearest to w that devices can be written to, and the second conductance of each pair."""
        if self.unidirectional:  # one of a pair is at 0
            plus, minus = (self._nearest((sign * w / limit).clamp(0, 1)) for sign in (1, -1))
            return limit * (plus - minus), minus
        return limit * (2 * self._nearest(((w / limit + 1) / 2).clamp(0, 1)) - 1), torch.zeros_like(limit)

    def _nearest(self, g: Tensor) -> Tensor:
        below = (_position(g, self.up) * self.levels).floor() / self.levels
        low, high = _conductance(below, self.up), _conductance((below + 1 / self.levels).clamp_max(1), self.up)
        return torch.where(g - low < high - g, low, high)

    def state_dict(self) -> dict[str, Any]:
        return {
            "limits": dict(self.limits),
            "minus": dict(self.minus),
            "rest": dict(self.rest),
            "random": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.limits, self.minus, self.rest = dict(state["limits"]), dict(state["minus"]), dict(state["rest"])
        self._generator.set_state(state["random"])


def _conductance(u: Tensor, v: float) -> Tensor:
    return u if v == 0 else torch.expm1(-v * u) / math.expm1(-v)


def _position(g: Tensor, v: float) -> Tensor:
    return g if v == 0 else -torch.log1p(g * math.expm1(-v)) / v


def _moved(g: Tensor, by: Tensor, v: float) -> Tensor:
    """The conductance when its position on the curve up has moved by so much."""
    return _conductance((_position(g.clamp(0, 1), v) + by).clamp(0, 1), v)
