"""Does a traced graph compute what the model computes? One run of each, on the example.

A tracer can be wrong without an error: a model may take another way while it is being traced than when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from ..errors import InputError, first_line
from ..graph.calls import input_tensors
from ..graph.graph import OpGraph
from ..randomness import keep_random_state
from .flat import FlatModel, running_plainly

__all__ = ["computes_the_same", "differ", "disagreement", "draws_numbers", "is_real", "refusal"]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.complex64: 1e-3, torch.complex128: 1e-6}
_ROUGH = 5e-2  # of half precision; and on a GPU, which may multiply with the ten digits of TF32 and in another order each time


def is_real(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the model and its example have values to compute with."""
    tensors = [*input_tensors(args, kwargs), *model.parameters(), *model.buffers()]
    return not any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in tensors)


def refusal(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> InputError | None:
    """Why the model itself does not run on a call, found by running it; None if it does, or if tensors are fake."""
    tensors = [*input_tensors(args, kwargs), *model.parameters(), *model.buffers()]
    if any(isinstance(t, FakeTensor) for t in tensors):
        return None
    try:
        with keep_random_state(tensors):
            _run(model, args, kwargs)
    except Exception as error:
        name = type(model).__name__
        refused = InputError(f"{name} itself does not run on these inputs: {type(error).__name__}: {first_line(error)}")
        refused.__cause__ = error
        return refused
    return None


def draws_numbers(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[str] = ()
) -> bool:
    """Whether two runs of the model, the second where the first left the random generators, give different outputs.

    Args:
        written: parameters that a run writes to; they stay as they are.
    """
    with keep_random_state(model, input_tensors(args, kwargs)):
        first, second = (_run(model, args, kwargs, written=written) for _ in range(2))
    return any(_distance(a, b) > 1 for a, b in zip(first, second) if a.is_floating_point())


def computes_the_same(first: nn.Module, other: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `first`, given the parameters and buffers of `other`, has its outputs on this call, to the last bit."""
    results = []
    for model in (first, other):
        with keep_random_state(first, other, input_tensors(args, kwargs)):
            results.append(_run(model, args, kwargs, other))
    found, expected = results
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))


def _run(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    owner: nn.Module | None = None,
    written: Sequence[str] = (),
) -> list[Tensor]:
    """The model's tensor outputs, with the tensors of `owner` if it is given.

    Buffers stay as they are, and so do the parameters that are `written` to.
    """
    tensors = [t.detach().clone() for t in input_tensors(args, kwargs)]
    copies: dict[str, Tensor] = {f"model.{name}": buffer.clone() for name, buffer in (owner or model).named_buffers()}
    if owner is not None:
        copies |= {f"model.{name}": parameter.detach() for name, parameter in owner.named_parameters()}
    copies |= {f"model.{n}": p.detach().clone() for n, p in (owner or model).named_parameters() if n in written}
    with torch.enable_grad(), running_plainly():  # as in training: a model may take a quicker way without gradients
        found = functional_call(FlatModel(model, args, kwargs), copies, tuple(tensors))
    return [t.detach() for t in found]


def disagreement(graph: OpGraph, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The largest difference of an output, in units of what rounding explains; above 1 the graph is wrong.

    Leaves buffers and the random state as they were.
    """
    values = graph.values_of_call(model, args, kwargs)
    with keep_random_state(values):
        expected = _run(model, args, kwargs, written=graph.mutations)
    with keep_random_state(values), torch.no_grad():
        found = graph.module(*(v.clone() if isinstance(v, Tensor) else v for v in values))
    return differ(graph.user_outputs(found), expected)


def differ(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """The largest difference of two lists of outputs, in units of what rounding explains.

    Of values that cancel out to nothing, rounding may leave something in the size of the other outputs.
    """
    pairs = [(a, b) for a, b in zip(found, expected) if isinstance(a, Tensor) and a.is_floating_point()]
    sizes = [float(b.detach().abs().max()) for _, b in pairs if b.numel() and not b.is_meta]
    largest = max(filter(math.isfinite, sizes), default=0.0)
    return max((_distance(a.detach(), b.detach(), largest) for a, b in pairs), default=0.0)


def _distance(found: Tensor, expected: Tensor, largest: float = 0.0) -> float:
    if found.shape != expected.shape:
        return float("inf")
    dtype = expected.dtype if expected.dtype in _TOLERANCE else torch.float32
    wide_found, wide = found.to(dtype), expected.to(dtype)
    if not found.numel() or found.is_meta or not bool(torch.isfinite(wide).all()):
        return 0.0
    scale = float(wide.abs().max()) + 1e-12
    rough = expected.is_cuda and dtype not in (torch.float64, torch.complex128)
    tolerance = _ROUGH if rough else _TOLERANCE.get(expected.dtype, _ROUGH)
    return float((wide_found - wide).abs().max()) / max(scale * tolerance, 4 * torch.finfo(dtype).eps * largest)
