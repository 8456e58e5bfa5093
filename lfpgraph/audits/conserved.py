"""Where the relevance of an output goes: how much reaches the inputs, and how much each kind of leak takes on the way.

Note [Rounding]: relevance is added up in float64, from what each operation was given and what it handed on. A model that
computes in a narrower type rounds the sum of the signals that meet at a node; where large ones of opposite sign cancel, the
error is large beside the sum. A difference of at most `_SLACK` units in the last place of the sum of absolute relevances that
met there is declared as "rounding"; a larger one is "undeclared".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..composites.composite import Composite
from ..engine.call import Call
from ..engine.units import Unit
from ..graph.graph import is_float, maker_of
from ..registry import (
    ACTIVATION,
    ATTENTION,
    CHOICE,
    CONTRACTION,
    NORMALISATION,
    PRODUCT,
    QUOTIENT,
    RECTIFIER,
    SPLIT,
)
from ..reports.classes import LEAKS, kinds_of
from .walked import reward_at, walk

__all__ = ["Conservation", "conservation"]

OTHER = "other inputs"
ROUNDING = "rounding"
UNDECLARED = "undeclared"
_SLACK = 16.0
_OPERANDS = {CONTRACTION, PRODUCT, QUOTIENT, NORMALISATION, ACTIVATION, ATTENTION, RECTIFIER}


@dataclass
class Conservation:
    """Where the relevance of an output has gone, summed over the batch, in units of the output.

    Attributes:
        explained: what was handed back; the inputs' relevance and all leaks add up to it.
        inputs: what has reached the inputs (embeddings for token ids).
        leaks: relevance by kind of leak (`lfpgraph.reports.classes.LEAKS`; "other inputs": activations made of
            parameters alone, such as embeddings of positions; "rounding": see the module's note); "undeclared" is what
            no declaration covers.
        flow: the size of the flow, the sum of absolute relevances at the output.
        worst: the operations with the largest undeclared leak, with it.
    """

    explained: float
    inputs: float
    leaks: dict[str, float]
    flow: float
    worst: list[tuple[str, float]] = field(default_factory=list)

    @property
    def residue(self) -> float:
        """The explained value less what the inputs and all leaks have; zero if everything is accounted for."""
        return self.explained - self.inputs - sum(self.leaks.values())

    @property
    def shares(self) -> dict[str, float]:
        """Each part as a share of the explained value."""
        whole = self.explained or float("nan")
        return {"inputs": self.inputs / whole, **{kind: value / whole for kind, value in self.leaks.items()}}

    def table(self) -> str:
        """Lines of text: part, relevance, share."""
        lines = [f"{'explained':22s} {self.explained: .6g}"]
        parts = {"inputs": self.inputs, **self.leaks}
        lines += [f"{name:22s} {value: .6g}  {self.shares[name]: .1%}" for name, value in parts.items()]
        return "\n".join(lines)


def conservation(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    *,
    on_missing: str = "derive",
    fallback: str = "error",
) -> Conservation:
    """Follow an output's relevance operation by operation and say where it stays.

    The walk of `attribute`, run step by step; arguments and exceptions are the same. Composites that compare two runs
    ("deeplift") are refused: their relevance adds up to a difference of outputs.
    """
    tally = _Tally()
    walked = walk(model, inputs, target, composite, tally, on_missing=on_missing, fallback=fallback)
    handed = [tally.hand(node, reward) for node, reward in walked.starts.items()]
    handed += [_size(reward) for reward in walked.stopped]
    for reward in walked.stopped:
        tally.leaks["stopped"] += _size(reward)[0]
    arrived = {node: reward for node, reward in walked.ends.items() if reward is not None}
    for node, reward in arrived.items():
        tally.met[node] = _size(reward)[0], _precision([reward])
    tally.settle()
    return Conservation(
        explained=sum(whole for whole, _ in handed),
        inputs=sum(_size(reward)[0] for reward in arrived.values()),
        leaks=dict(tally.leaks),
        flow=sum(size for _, size in handed),
        worst=sorted(tally.undeclared, key=lambda pair: -abs(pair[1]))[:5],
    )


class _Tally:
    """Called by the walk at every unit; adds up what stays at each unit, and at each node where signals meet."""

    def __init__(self) -> None:
        self.leaks: defaultdict[str, float] = defaultdict(float)
        self.undeclared: list[tuple[str, float]] = []
        self.handed: defaultdict[fx.Node, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))  # sum, absolute sum
        self.met: dict[fx.Node, tuple[float, float]] = {}  # the sum that has arrived; its unit in the last place

    def hand(self, node: fx.Node, reward: Tensor) -> tuple[float, float]:
        """Note that a node is given a reward; returns the sum of its entries and of their absolute values."""
        whole, size = _size(reward)
        maker = maker_of(node)
        before = self.handed[maker]
        self.handed[maker] = before[0] + whole, before[1] + size
        return whole, size

    def settle(self) -> None:
        """Compare what each node was handed with what has arrived after its signals were added up."""
        for node, (arrived, precision) in self.met.items():
            whole, size = self.handed[node]
            self.rest(f"signals that meet at {node.name}", whole - arrived, size, precision)

    def rest(self, name: str, rest: float, size: float, precision: float, kind: str | None = None) -> None:
        """Count what is left over: as rounding if it is small enough, else as a leak of `kind`, without one as undeclared."""
        if abs(rest) <= _SLACK * precision * size:
            self.leaks[ROUNDING] += rest
        elif kind is not None:
            self.leaks[kind] += rest
        else:
            self.leaks[UNDECLARED] += rest
            self.undeclared.append((name, rest / size if size else rest))

    def __call__(self, unit: Unit, call: Call, s: Any, answers: Sequence[Any]) -> None:
        signals = s if isinstance(s, list | tuple) else [s]
        outputs = call.output if isinstance(call.output, list | tuple) else [call.output]
        pairs = [(g, z) for g, z in zip(signals, outputs) if g is not None and is_float(z)]
        whole = call.arrived if isinstance(call.arrived, list | tuple) else [call.arrived]
        arrived, size = (sum(parts) for parts in zip(*(_size(r) for r in whole if r is not None)))
        self.met[unit.node] = arrived, _precision(outputs)
        given = 0.0
        for node, g, x, wanted in zip(unit.inputs, answers, call.inputs, unit.wanted):
            if g is not None and wanted and is_float(x):
                part, mass = self.hand(node, reward_at(g, x, call.answered))
                given, size = given + part, size + mass
        rest = arrived - given
        kinds = _declared(unit, call.form is not None)
        if call.form is not None:  # what the stabilizer takes can be told exactly, and what it loses to rounding
            kept = None if call.answered is None else call.form
            stabilizer = arrived - sum(_size(reward_at(g, z, kept))[0] for g, z in pairs)
            self.leaks["epsilon"] += stabilizer
            rest -= stabilizer
        others = [kind for kind in kinds if kind != "epsilon"] or kinds
        precision = _precision([*outputs, *call.inputs])
        self.rest(f"{unit.node.name} ({unit.node.target})", rest, size, precision, others[0] if others else None)


def _size(reward: Tensor) -> tuple[float, float]:
    """The sum of a reward's entries and of their absolute values, in float64; infinite ones (of masks) count as zero."""
    finite = reward.double().nan_to_num(0, 0, 0)
    return float(finite.sum()), float(finite.abs().sum())


def _precision(values: Iterable[Any]) -> float:
    """The unit in the last place of the narrowest float type among the values."""
    flat = (v for value in values for v in (value if isinstance(value, list | tuple) else (value,)))
    return max((torch.finfo(v.dtype).eps for v in flat if is_float(v)), default=torch.finfo(torch.float64).eps)


def _declared(unit: Unit, stabilized: bool) -> list[str]:
    """The kinds of leak that a unit may have, the likeliest first.

    `stabilized`: the signal at its output is in stabilized form, which gives relevance to entries of 0 too.
    """
    kinds = kinds_of(unit)
    floats = [i for i, n in enumerate(unit.inputs) if is_float(n.meta.get("val"))]
    if any(unit.active[i] and not unit.wanted[i] for i in floats):
        kinds.insert(0, OTHER)
    if unit.family not in _OPERANDS and any(not unit.active[i] for i in floats):
        kinds.append("bias" if any(unit.weightlike) else "constant")
    whole = unit.family is SPLIT and any(not is_float(n.meta.get("val")) for n in unit.inputs)
    if whole or unit.family in (CHOICE, SPLIT) and any(isinstance(a, int | float) and a for a in unit.node.args):
        kinds.append("constant")
    if unit.rule is not None and unit.rule.own_stabilizer:
        kinds.append("epsilon")
    if stabilized and (unit.family is RECTIFIER or unit.node.target is torch.ops.aten.constant_pad_nd.default):
        kinds.append("activation at zero")
    if not kinds and not unit.family.conserves:
        kinds.append("derived")
    assert all(kind in LEAKS or kind == OTHER for kind in kinds)
    return kinds
