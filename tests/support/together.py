"""Random modules side by side: one trace serves them all, since it is most of what a case costs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lfpgraph.errors import DataDependentError
from lfpgraph.graph.graph import OpGraph
from lfpgraph.tracing.tracer import trace

from .ways import Grads, Inputs, compare

__all__ = ["Case", "Joint", "by_writes"]

WRITES = re.compile(r"\w_\(|\] [-+*/]?= |inplace=True|\w [-+*/]= |out=")


@dataclass
class Case:
    """A module of two inputs, and what is asked of it."""

    seed: int  # or another number to tell it by
    module: nn.Module
    inputs: Inputs
    signals: list[Tensor]
    source: str


class Together(nn.Module):
    """Runs its parts one after the other, each on the next two inputs."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(itertools.chain(*(part(*inputs[2 * i : 2 * i + 2]) for i, part in enumerate(self.parts))))


class Joint:
    """Some cases as one; a single one stays as it is."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.module = cases[0].module if len(cases) == 1 else Together(case.module for case in cases)
        self.inputs: Inputs = tuple(x for case in cases for x in case.inputs)
        self.signals = [s for case in cases for s in case.signals]

    @property
    def source(self) -> str:
        return "\n".join(f"# seed {case.seed}\n{case.source}" for case in self.cases)

    def trace(self) -> OpGraph:
        """The graph of all; of one alone that decides on a tensor's value, of the way it takes."""
        try:
            return trace(self.module, self.inputs, dynamic=False)
        except DataDependentError:
            if len(self.cases) > 1:
                raise
            return trace(self.module, self.inputs, dynamic=False, fallback="retrace")

    def parted(self, grads: Grads) -> list[Grads]:
        """What belongs to each case, by the names that it has there."""
        if len(self.cases) == 1:
            return [grads]
        found: list[Grads] = [{} for _ in self.cases]
        for name, value in grads.items():
            kind, _, rest = name.partition(" ")
            if kind == "input":
                found[int(rest) // 2][f"input {int(rest) % 2}"] = value
            else:
                _, place, own = name.split(".", 2)
                found[int(place)][own] = value
        return found

    def compare(self, way: str, found: Grads, want: Grads) -> None:
        """Each case by its own largest entry, and float32's rounding where it casts to that."""
        for case, ours, theirs in zip(self.cases, self.parted(found), self.parted(want)):
            compare(f"{way}, seed {case.seed}", ours, theirs, case.source)

    def assert_finite(self, feedback: Grads, gradients: Grads) -> None:
        """The feedback of a case is finite where its gradients are."""
        for case, ours, theirs in zip(self.cases, self.parted(feedback), self.parted(gradients)):
            if all(bool(torch.isfinite(g).all()) for g in theirs.values()):
                assert all(bool(torch.isfinite(s).all()) for s in ours.values()), (
                    f"feedback of {case.seed} is not finite"
                )


def by_writes(cases: Sequence[Case]) -> list[Joint]:
    """Those that write in place by themselves: a trace with such writes is taken apart in another way than one without."""
    parts = [[case for case in cases if bool(WRITES.search(case.source)) is writes] for writes in (False, True)]
    return [Joint(part) for part in parts if part]
