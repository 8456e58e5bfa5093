"""A run of a model for the sake of seeing what it does, before it is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...graph.calls import flatten_input, flatten_output
from ...randomness import keep_random_state
from ..flat import attributes_of, given, running_plainly
from ..verify import differ
from ..written.parameters import ParametersBefore
from .observation import Observation

__all__ = ["try_out"]

_RUNS = 3  # a model may prepare itself in its first


def try_out(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Observation, Any]:
    """Observe the model's forward on a call, and return what came of it, too.

    Arguments, buffers, parameters and random generators are copies or put back. What the model's Python writes stays, but
    then the observation names it. A model that prepares itself in its first call is run again, and has to return the same.
    That it goes another way while it is traced (`Observation.shortcut`) is for the caller to judge.
    """
    first: list[Tensor] | None = None
    for _ in range(_RUNS):
        with keep_random_state(model, args, kwargs, python=True):
            seen, result = _observed(model, args, kwargs)
        tensors = flatten_output(result)[0]
        if first is not None and (len(tensors) != len(first) or differ(tensors, first) > 1):
            seen.why_live = seen.why_live or "its first call returns something else than the next one"
        if not seen.may_settle:
            break
        first = tensors
    return seen, result


def _observed(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Observation, Any]:
    leaves, spec = flatten_input(args, kwargs)
    copied = {id(leaf): _copy(leaf) for leaf in leaves if isinstance(leaf, Tensor)}  # one given twice stays one
    leaves = [copied.get(id(leaf), leaf) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    parameters = ParametersBefore(model)
    before = [(name, x, x._version, x.grad_fn) for name, x in _named(copies, leaves).items()]
    with running_plainly(), torch.enable_grad(), Observation(model, True, allows_shortcut=True) as seen:
        with given(model, copies):
            result = model.forward(*args, **kwargs)
            seen.drawn = torch.get_rng_state()
            seen.written = {name for name, x, version, _ in before if x._version != version}
            seen.returned = _returned(result, model, leaves)
            linked = next((name for name, buffer in model.named_buffers() if buffer.requires_grad), None)
            moved = next(
                (name for name, x, _, made_by in before if name in seen.written and x.grad_fn is not made_by), None
            )
    parameters.put_back()
    sizes = {name: buffer.shape for name, buffer in model.named_buffers()}
    if resized := [name for name, copy in copies.items() if copy.shape != sizes.get(name, copy.shape)]:
        seen.why_live, seen.may_settle = f"it gives its buffer {resized[0]} another size", False
    if linked is not None:
        seen.why_live, seen.may_settle = f"its buffer {linked} keeps the gradient graph of the call that made it", False
    elif moved is not None:
        seen.why_live, seen.may_settle = f"it writes to {moved}, and autograd is to follow what has been written", False
    after, spec_after = flatten_input(args, kwargs)
    if spec != spec_after or any(a is not b for a, b in zip(leaves, after)):
        seen.why_live = seen.why_live or "it writes into a container among its arguments, such as a key-value cache"
        seen.may_settle = False
    return seen, result


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    copy = copy if tensor.is_leaf else copy.clone()  # which may be written to
    vars(copy).update(attributes_of(tensor))
    return copy


def _returned(result: Any, model: nn.Module, leaves: Sequence[Any]) -> set[str]:
    """The buffers and inputs in whose memory an output of the model lies, by name."""
    memory = {part for out in flatten_output(result)[0] for part in _memory(out)}
    named = _named(dict(model.named_buffers()), leaves)
    return {name for name, tensor in named.items() if _memory(tensor) & memory}


def _named(buffers: Mapping[str, Tensor], leaves: Sequence[Any]) -> dict[str, Tensor]:
    """Buffers and inputs, as an observation calls them."""
    return {**buffers, **{f"input {i}": leaf for i, leaf in enumerate(filter(torch.is_tensor, leaves))}}


def _memory(tensor: Tensor) -> set[int]:
    return {tensor.untyped_storage()._cdata} if tensor.layout is torch.strided and not tensor.is_nested else set()
