"""A call of a model taken apart: its tensors, and all that tells it from calls that another program is for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..graph.calls import are_tensors, flatten_input
from ..graph.graph import OpGraph
from ..tracing.guards import Observation
from .plain_values import attached, is_frozen, layout_of, memory_of, told_apart

__all__ = ["ModelCall"]


class ModelCall:
    """A call of a model taken apart.

    Attributes:
        model, args, kwargs: who is called with what.
        leaves, spec: the arguments flat, and their pytree; `tensors`: those among the leaves.
        state: parameters and buffers by dotted name, a tied one under each of its names.
        modes: for each module whether it is in training.
        expected: the outputs of the model's own run on this call, if it was observed, until a program's are compared with them.
        followed: whether gradients of each of them reach something; empty if it was not observed.
        trial: what was seen of that run.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.leaves, self.spec = flatten_input(args, kwargs)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.state: dict[str, Tensor] = {}
        self.modes: list[bool] = []
        self.expected: list[Tensor] | None = None
        self.followed: list[bool] = []
        self.trial: Observation | None = None
        self._visit(model, "")

    def _visit(self, module: nn.Module, dot: str) -> None:
        self.modes.append(module.training)
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    self.state[dot + name] = value
        for name, child in module._modules.items():
            if child is not None:
                self._visit(child, f"{dot}{name}.")

    @property
    def follows(self) -> bool:
        """Whether anything that goes in requires a gradient."""
        return any(t.requires_grad for t in (*self.state.values(), *self.tensors))

    @property
    def odd(self) -> Any:
        """An argument that is neither a tensor nor a plain value, if there is one."""
        return next((leaf for leaf in self.leaves if not isinstance(leaf, Tensor) and not is_frozen(leaf)), None)

    def has_changed(self) -> bool:
        """Whether the arguments hold other objects by now: the call has put some into a container of the caller's."""
        leaves, spec = flatten_input(self.args, self.kwargs)
        return spec != self.spec or any(a is not b for a, b in zip(leaves, self.leaves))

    @functools.cached_property
    def kind(self) -> Any:
        """What a program depends on, sizes of inputs apart."""
        leaves = tuple(
            (leaf.dtype, leaf.dim(), leaf.device, leaf.requires_grad, leaf.layout, *attached(leaf))
            if isinstance(leaf, Tensor)
            else told_apart(leaf)
            for leaf in self.leaves
        )
        state = tuple(
            (name, t.dtype, t.device, t.requires_grad, None if is_lazy(t) else t.shape)
            for name, t in self.state.items()
        )
        casts = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))
        structure = (len(self.args), *self.kwargs) if are_tensors(self.args, self.kwargs) else str(self.spec)
        return (structure, leaves, tuple(self.modes), state, casts, self._repeated() if len(self.tensors) > 1 else ())

    def _repeated(self) -> tuple[int, ...]:
        """For each tensor which one it is, if one is given twice: a model may ask `x is y`."""
        identities = list(map(id, self.tensors))
        return tuple(map(identities.index, identities)) if len(set(identities)) < len(identities) else ()

    @property
    def layout(self) -> tuple[Any, ...]:
        """How all tensors lie in memory, sizes apart."""
        return tuple(map(layout_of, (*self.tensors, *self.state.values())))

    def overlaps(self, written: Sequence[str]) -> str | None:
        """Which of these buffers and inputs (`input 0`) lies in the memory of another tensor; None if none does."""
        given = {f"input {i}": tensor for i, tensor in enumerate(self.tensors)}
        places = [(x, memory_of(x), among is given) for among in (self.state, given) for x in among.values()]
        for name in written:
            own = given[name] if name in given else self.state[name]
            memory = memory_of(own)  # one buffer may have several names
            if any(m == memory and (x is not own or is_given != (name in given)) for x, m, is_given in places):
                return name
        return None

    @property
    def sizes(self) -> str:
        """The inputs' sizes, for messages."""
        return ", ".join(str(list(t.shape)) for t in self.tensors)

    @property
    def not_made(self) -> list[str]:
        """Parameters and buffers that the model's first call makes."""
        return [name for name, tensor in self.state.items() if is_lazy(tensor)]

    def values(self, graph: OpGraph) -> list[Any]:
        """The values of a graph's placeholders for this call."""
        return graph.values(self.tensors, self.state)
