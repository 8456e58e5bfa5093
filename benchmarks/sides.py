"""The sides that are measured against each other: how each makes a trainable model of a case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import lfpgraph
from benchmarks.models import Case
from benchmarks.peers import PEERS, twin

__all__ = ["COMPOSITE", "SIDES", "Side", "backprop"]

COMPOSITE = "lfp"  # as `wrap` has it
Side = Callable[[], None]  # forward and backward: leaves the gradient, or the feedback, in `.grad`


def backprop(case: Case, **options: Any) -> Side:
    """The model under autograd; options are torch.compile's."""
    model = twin(case.twin or case.model)
    run = torch.compile(model, **options) if options else model
    return lambda: case.loss(run).backward()  # type: ignore[no-untyped-call]


def _feedback(case: Case, **options: Any) -> Side:
    model = lfpgraph.wrap(twin(case.model), COMPOSITE, **options)
    return lambda: case.loss(model).backward()  # type: ignore[no-untyped-call]


SIDES: dict[str, Callable[[Case], Side]] = {
    "backprop": backprop,
    "lfp": lambda case: _feedback(case, engine="static"),
    "lfp-auto": lambda case: _feedback(case),
    "lfp-live": lambda case: _feedback(case, engine="live"),
    "lfp-min": lambda case: _feedback(case, memory="min"),
    "lfp-regional": lambda case: _feedback(case, regional=True),
    "backprop-compiled": lambda case: backprop(case, dynamic=False),
    "lfp-compiled": lambda case: _feedback(case, compile=True),
    **PEERS,
}
