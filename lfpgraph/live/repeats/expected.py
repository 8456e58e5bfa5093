"""What is looked at of a planned run, so that another one that goes as it went need only be compared with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...engine.plan import How
from ..parameters import Scale
from ..record import Record
from ..schedule import Schedule
from .factors import USUAL, Factor
from .steps import Quick, quick_steps

__all__ = ["Scaled", "Simple", "make_ready"]


class Scaled(NamedTuple):
    """A parameter that was met, and what makes its signal feedback, also as a tensor holds its hooks (of a large one: None)."""

    parameter: Tensor
    shape: torch.Size
    dtype: torch.dtype
    scale: Scale
    hooks: dict[int, Any] | None


@dataclass(frozen=True)
class Simple:
    """A planned run of which every step is quickly compared, and that is amended by epsilon factors alone, or by nothing.

    Attributes:
        leaves: by number, of each value that the run finds its kind and name, type, dimensions, and whether autograd follows it.
        steps: all of the run. count: of its values. unread: values besides the outputs that nothing in the run reads.
        parameters: by number, how the signal becomes feedback; scales: what does it, with the parameter that was met last.
        factors: the number of each output, and its factor.
        direct: parameters whose feedback is their signal, and that one operation reads whose output has a factor: by the number
            of that output. They need no alias, and the factor tells the watch of them. bare: all of these.
    """

    leaves: dict[int, tuple[tuple[str, Any], torch.dtype, int, bool]]
    steps: list[Quick]
    count: int
    unread: list[int]
    parameters: dict[int, How]
    scales: dict[int, Scaled]
    factors: list[tuple[int, Factor]]
    direct: dict[int, list[int]]
    bare: set[int]


def make_ready(schedule: Schedule, record: Record, check: bool) -> None:
    """Prepare once what later runs are compared with; `record` is one that went as it was planned."""
    if schedule.quick is None:
        schedule.quick = quick_steps(schedule, record.follows)
        schedule.simple = _simple(schedule, schedule.quick, record, check)


def _simple(schedule: Schedule, quick: list[Any], record: Record, check: bool) -> Simple | None:
    """A planned run made ready for `Replay`, if it is such a run."""
    lone = [(a.exits[0], a.lone) for a in schedule.amendments]
    outside = any(leaf.tensor.grad_fn is not None for leaf in record.leaves)  # made by another network
    if check or outside or record.begun or record.own or not all(quick):
        return None
    if schedule.looks_at_outputs or not all(factor for _, factor in lone):
        return None
    if any(leaf.tensor.is_cuda for leaf in record.leaves) or any(
        f and record.dtypes[f.measure] not in USUAL for _, f in lone
    ):
        return None
    leaves = {}
    for leaf, (kind, name, (dtype, dims, follows)) in zip(record.leaves, schedule.around[0]):
        leaves[leaf.value] = (kind, name), dtype, dims, follows
    factors = [(n, factor) for n, factor in lone if factor]
    reads = Counter(n for step in quick for _, n in step.tensors)
    numbers = [(record.leaves[place].value, how) for place, how in schedule.parameters]
    parameters = {n: how for n, how in numbers if leaves[n][3]}
    kept = schedule.kept_values
    own = {n for n, how in parameters.items() if reads[n] == 1 and (how.plain or how.small) and n not in kept}
    for step in quick:
        step.sort(leaves, own)
    direct: dict[int, list[int]] = {n: [] for n, _ in factors}
    for step in quick:
        if step.number in direct:
            direct[step.number] = [
                n for _, n in step.outer if n in parameters and parameters[n].plain and reads[n] == 1
            ]
    unread = [n for n in schedule.unread if n not in schedule.around[1]]
    bare = {n for numbers in direct.values() for n in numbers}
    return Simple(leaves, quick, len(record.shapes), unread, parameters, {}, factors, direct, bare)
