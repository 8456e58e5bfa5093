"""Where the relevance of an output goes: the inputs, and what each kind of leak takes on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..composites import Composite
from ..propagate import Call
from ..trace.graph import is_float
from ..units import Unit
from .leaks import LEAKS, kinds_of
from .walked import reward_at, walk

__all__ = ["Conservation", "conservation"]

OTHER = "other inputs"
UNDECLARED = "undeclared"
_OPERANDS = {"contraction", "product", "quotient", "normalisation", "activation", "attention", "rectifier"}


@dataclass
class Conservation:
    """The way of an output's relevance, summed over the batch, in units of the output.

    Attributes:
        explained: what was handed back; the inputs' relevance and all leaks add up to it.
        inputs: what has reached the inputs (embeddings for token ids).
        leaks: relevance by kind of leak (`lfpgraph.reports.leaks.LEAKS`; "other inputs": activations made of
            parameters alone, such as embeddings of positions); "undeclared" is what no declaration covers: rounding.
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
        """What is missing of the explained value after inputs and leaks."""
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
    composite: str | Composite = "epsilon-plus",
    *,
    on_missing: str = "derive",
    fallback: str = "error",
) -> Conservation:
    """Follow an output's relevance operation by operation and say where it stays.

    The walk of `attribute`, run step by step; arguments and exceptions are the same.
    """
    tally = _Tally()
    walked = walk(model, inputs, target, composite, tally, on_missing=on_missing, fallback=fallback)
    handed = walked.starts.values()
    return Conservation(
        explained=sum(float(r.sum()) for r in handed),
        inputs=sum(float(r.sum()) for r in walked.ends.values() if r is not None),
        leaks=dict(tally.leaks),
        flow=sum(float(r.abs().sum()) for r in handed),
        worst=sorted(tally.undeclared, key=lambda pair: -abs(pair[1]))[:5],
    )


class _Tally:
    """Observes the walk and adds up what stays at each unit."""

    def __init__(self) -> None:
        self.leaks: defaultdict[str, float] = defaultdict(float)
        self.undeclared: list[tuple[str, float]] = []

    def __call__(self, unit: Unit, call: Call, s: Any, answers: Sequence[Any]) -> None:
        signals = s if isinstance(s, list | tuple) else [s]
        outputs = call.output if isinstance(call.output, list | tuple) else [call.output]
        pairs = [(g, z) for g, z in zip(signals, outputs) if g is not None and is_float(z)]
        whole = call.arrived if isinstance(call.arrived, list | tuple) else [call.arrived]
        arrived = sum(float(r.nan_to_num(0, 0, 0).sum()) for r in whole if r is not None)
        given = sum(
            float(reward_at(g, x, call.answered).sum())
            for g, x, wanted in zip(answers, call.inputs, unit.wanted)
            if g is not None and wanted and is_float(x)
        )
        rest = arrived - given
        kinds = _declared(unit, call.form is not None)
        if call.form is not None:  # what the stabilizer takes can be told exactly, and what it loses to rounding
            kept = None if call.answered is None else call.form
            stabilizer = arrived - sum(float(reward_at(g, z, kept).sum()) for g, z in pairs)
            self.leaks["epsilon"] += stabilizer
            rest -= stabilizer
        others = [kind for kind in kinds if kind != "epsilon"] or kinds
        size = sum(float(reward_at(g, z, None).abs().sum()) for g, z in pairs)
        if others and abs(rest) > 1e-12 * size:
            self.leaks[others[0]] += rest
        else:
            self.leaks[UNDECLARED] += rest
            self.undeclared.append((f"{unit.node.name} ({unit.node.target})", rest / size if size else rest))


def _declared(unit: Unit, stabilized: bool) -> list[str]:
    """The kinds of leak a unit may have, the likeliest first; `stabilized` says that entries of 0 may have relevance."""
    kinds = kinds_of(unit)
    floats = [i for i, n in enumerate(unit.inputs) if is_float(n.meta.get("val"))]
    if any(unit.active[i] and not unit.wanted[i] for i in floats):
        kinds.insert(0, OTHER)
    if unit.family.name not in _OPERANDS and any(not unit.active[i] for i in floats):
        kinds.append("bias" if any(unit.weightlike) else "constant")
    if unit.family.name in ("choice", "split") and any(isinstance(a, int | float) and a for a in unit.node.args):
        kinds.append("constant")
    if getattr(unit.handler, "own_stabilizer", False):
        kinds.append("epsilon")
    if stabilized and (unit.family.name == "rectifier" or unit.node.target is torch.ops.aten.constant_pad_nd.default):
        kinds.append("activation at zero")
    if not kinds and not unit.family.conserves:
        kinds.append("derived")
    assert all(kind in LEAKS or kind == OTHER for kind in kinds)
    return kinds
