"""The programs of a model: made when a call first needs one, and kept for the calls they are right for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks

from ..engine.program import Program
from ..errors import LfpGraphError, TraceError
from ..graph.calls import flatten_input
from ..graph.graph import OpGraph, is_statistic
from ..graph.sizes import Sizes
from ..randomness import keep_random_state
from ..tracing.tracer import trace
from ..tracing.verify import computes_the_same

__all__ = ["Entry", "ModelCall", "Programs"]

log = logging.getLogger("lfpgraph")
_MOST = 32  # programs kept for calls that differ in sizes alone


class ModelCall:
    """A call of a model taken apart.

    Attributes:
        model, args, kwargs: who is called with what.
        leaves, spec: the arguments flat, and their pytree; `tensors`: those among the leaves.
        state: parameters and buffers by dotted name, a tied one under each of its names.
        modes: for each module whether it is in training.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.leaves, self.spec = flatten_input(args, kwargs)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.state: dict[str, Tensor] = {}
        self.modes: list[bool] = []
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

    def has_changed(self) -> bool:
        """Whether the arguments hold other objects by now: the call has put some into a container of the caller's."""
        leaves, spec = flatten_input(self.args, self.kwargs)
        return spec != self.spec or any(a is not b for a, b in zip(leaves, self.leaves))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The inputs' sizes."""
        return tuple(tuple(t.shape) for t in self.tensors)

    @cached_property
    def key(self) -> Any:
        """What a program depends on, sizes of inputs apart."""
        leaves = tuple(
            (leaf.dtype, leaf.dim(), leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else _static(leaf)
            for leaf in self.leaves
        )
        state = tuple((name, t.dtype, t.device, t.requires_grad, t.shape) for name, t in self.state.items())
        casts = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))
        return (str(self.spec), leaves, tuple(self.modes), state, casts)

    @property
    def sizes(self) -> str:
        """The inputs' sizes, for messages."""
        return ", ".join(str(list(t.shape)) for t in self.tensors)

    def values(self, graph: OpGraph) -> list[Any]:
        """The values of a graph's placeholders for this call."""
        return graph.values(self.tensors, self.state)


def _static(leaf: Any) -> Any:
    return type(leaf), repr(leaf)  # 1, 1.0 and True are equal, and not the same to a model


@dataclass(eq=False)
class Entry:
    """A program of a model.

    Attributes:
        owner: the model it was traced from; None where no other model shares it.
        sizes: those that it is right for.
        unseen: buffers that the model writes without autograd's notice, as batch norms write their statistics, so that
            what other calls have saved of them can still be used.
    """

    program: Program
    owner: nn.Module | None = None
    sizes: Sizes = field(init=False)
    unseen: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = Sizes(self.graph)
        written = zip(self.graph.mutations, self.graph.output_nodes)
        self.unseen = {name for name, node in written if isinstance(node, fx.Node) and is_statistic(node)}

    @property
    def graph(self) -> OpGraph:
        return self.program.plan.graph


E = TypeVar("E", bound=Entry)


class Programs(Generic[E]):
    """The programs of one model, by what they depend on; a copy or pickle of them is empty.

    Args:
        like: the programs of a module that looks the same, to be shared with it. Before one is used, both modules are run; if
            their outputs differ, this object keeps programs of its own from then on.
    """

    def __init__(self, like: Programs[E] | None = None) -> None:
        self.kept: dict[Any, list[E]] = {} if like is None else like.kept
        self.trusted: set[E] = set()  # entries of other modules that were tried and give this one's outputs
        self.traces = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(Programs())

    def __iter__(self) -> Iterator[E]:
        return (entry for entries in self.kept.values() for entry in entries)

    def fitting(self, call: ModelCall) -> E | None:
        """An entry that is right for a call."""
        return next((entry for entry in self.kept.get(call.key, ()) if entry.sizes.accepts(call.tensors)), None)

    def find(self, call: ModelCall, make: Callable[[ModelCall], E]) -> E:
        """The entry that is right for a call; `make` makes one where there is none."""
        name = type(call.model).__name__
        entries = self.kept.setdefault(call.key, [])
        entry = self.fitting(call)
        if entry is not None and self._is_right(entry, call):
            return entry
        if entry is not None:
            log.info("%s is not like the block it was taken for: it gets programs of its own", name)
            self.kept = {}
            return self.find(call, make)
        if entries:
            log.warning("tracing %s again: no program fits inputs of sizes %s", name, call.sizes)
        entry = make(call)
        if entry.graph.tracer == "export":
            entries.append(entry)
            del entries[:-_MOST]
        return entry

    def _is_right(self, entry: E, call: ModelCall) -> bool:
        """Whether the entry was traced from this model, or from one that computes the same."""
        if entry.owner is None or entry.owner is call.model or entry in self.trusted:
            return True
        alike = computes_the_same(entry.owner, call.model, call.args, call.kwargs)
        if alike:
            self.trusted.add(entry)
        return alike

    def trace(self, call: ModelCall, fallback: str, prepare: Callable[[OpGraph, ModelCall], E]) -> E:
        """Trace the model and `prepare` an entry of its graph; where that fails for open sizes, for these sizes alone."""
        self.traces += 1
        name = type(call.model).__name__
        no_hooks = saved_tensors_hooks(lambda t: t, lambda t: t)  # those of the caller shall see no fake tensors
        with keep_random_state(call.model, call.tensors), no_hooks:  # a call that traces draws what a later one draws
            graph = trace(call.model, call.args, call.kwargs, fallback=fallback)
            try:
                return prepare(graph, call)
            except LfpGraphError:
                raise
            except Exception as error:
                if not graph.dynamic:
                    raise _no_program(name, error) from error
                log.info("%s does not trace for open sizes: %s", name, error)
            log.warning("%s is traced for these sizes alone: %s", name, call.sizes)
            graph = trace(call.model, call.args, call.kwargs, dynamic=False, fallback=fallback)
            try:
                return prepare(graph, call)
            except LfpGraphError:
                raise
            except Exception as error:
                raise _no_program(name, error) from error


def _no_program(name: str, error: Exception) -> TraceError:
    return TraceError(f"the graph of {name} could not be made a program: {type(error).__name__}: {error}")
