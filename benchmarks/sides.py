"""The sides that are measured against each other: how each makes a trainable model of a case."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lfpgraph
from benchmarks.models import Case

__all__ = ["COMPOSITE", "SIDES", "Side", "backprop"]

COMPOSITE = "lfp-epsilon"
Side = Callable[[], None]  # forward and backward: leaves the gradient, or the feedback, in `.grad`


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters, so that memory holds them once."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def backprop(case: Case, **options: Any) -> Side:
    """The model under autograd; options are torch.compile's."""
    model = _twin(case.twin or case.model)
    run = torch.compile(model, **options) if options else model
    return lambda: case.loss(run).backward()  # type: ignore[no-untyped-call]


def _feedback(case: Case, **options: Any) -> Side:
    model = lfpgraph.wrap(_twin(case.model), COMPOSITE, **options)
    return lambda: case.loss(model).backward()  # type: ignore[no-untyped-call]


def _lfprop(case: Case) -> Side:
    """lfprop: the model is entered once; feedback comes from a reward handed to autograd, in an attribute of its own."""
    from lfprop.propagation import propagator_lxt

    if isinstance(case.inputs, dict):
        raise NotImplementedError("lfprop's models take one tensor")
    model = _twin(case.model)
    entered = propagator_lxt.LFPEpsilonComposite(epsilon=1e-6).context(model).__enter__()
    inputs = case.inputs.clone().requires_grad_()

    def run() -> None:
        out = entered(inputs)
        one_hot = torch.nn.functional.one_hot(case.labels, out.shape[-1]).to(out.dtype)
        reward = (out * (one_hot - out.softmax(-1)) / len(out)).detach()
        torch.autograd.grad((out,), (inputs,), grad_outputs=(reward,))
        for parameter in model.parameters():
            parameter.grad = -parameter.feedback  # type: ignore[attr-defined]

    return run


SIDES: dict[str, Callable[[Case], Side]] = {
    "backprop": backprop,
    "lfp": lambda case: _feedback(case, engine="static"),
    "lfp-auto": lambda case: _feedback(case),
    "lfp-live": lambda case: _feedback(case, engine="live"),
    "lfp-min": lambda case: _feedback(case, memory="min"),
    "lfp-regional": lambda case: _feedback(case, regional=True),
    "backprop-compiled": lambda case: backprop(case, dynamic=False),
    "lfp-compiled": lambda case: _feedback(case, compile=True),
}
if importlib.util.find_spec("lfprop") is not None:
    SIDES["lfprop"] = _lfprop
