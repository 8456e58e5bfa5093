"""The programs of a model: made when a call first needs one, and kept for the calls they are right for."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy

from ..engine.program import Program
from ..errors import LfpGraphError, TraceError, one_line
from ..graph.calls import are_tensors, flatten_input
from ..graph.graph import OpGraph, is_statistic
from ..graph.sizes import Sizes
from ..randomness import keep_random_state
from ..threads.turns import alone, one_at_a_time
from ..tracing.guards import Guard, Observation
from ..tracing.tracer import trace
from ..tracing.verify import computes_the_same
from .plain_values import attached, is_frozen, told_apart

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
            (leaf.dtype, leaf.dim(), leaf.device, leaf.requires_grad, *attached(leaf))
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
        return (structure, leaves, tuple(self.modes), state, casts)

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


@dataclass(eq=False)
class Entry:
    """A program of a model.

    Attributes:
        owner: the model it was traced from; None where no other model shares it.
        sizes: those that it is right for.
        unseen: buffers that the model writes without autograd's notice, as batch norms write their statistics, so that
            what other calls have saved of them can still be used.
        untouched: by place among the model's outputs, the place among the graph's arguments of one that is returned as it is.
    """

    program: Program
    owner: nn.Module | None = None
    sizes: Sizes = field(init=False)
    unseen: set[str] = field(init=False)
    untouched: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = Sizes(self.graph)
        written = zip(self.graph.mutations, self.graph.output_nodes)
        self.unseen = {name for name, node in written if isinstance(node, fx.Node) and is_statistic(node)}
        places = {node: i for i, node in enumerate(self.graph.placeholder_nodes)}
        self.untouched = {i: places[node] for i, node in enumerate(self.graph.user_output_nodes) if node in places}

    @property
    def graph(self) -> OpGraph:
        return self.program.plan.graph


E = TypeVar("E", bound=Entry)


class Programs(Generic[E]):
    """The programs of one model, by what they depend on; a copy or pickle of them is empty.

    Args:
        like: the programs of a module that looks the same, to be shared with it. Before one is used, both modules are run; if
            their outputs differ, this object keeps programs of its own from then on.

    Attributes:
        guards: for each program that this model has been found right for, what says whether it still is.
    """

    def __init__(self, like: Programs[E] | None = None) -> None:
        self.kept: dict[Any, list[E]] = {} if like is None else like.kept
        self.guards: dict[E, Guard | None] = {}
        self.traces = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(Programs())

    def __iter__(self) -> Iterator[E]:
        return (entry for entries in self.kept.values() for entry in entries)

    def fitting(self, call: ModelCall) -> E | None:
        """The program for calls like this one, if there is one; whether the model is still as it was is not asked."""
        return next((entry for entry in self.kept.get(call.kind, ()) if entry.sizes.accepts(call.tensors)), None)

    def changed(self, entry: E) -> str | None:
        """What the model has changed since a program was found right for it, in words; None if nothing."""
        guard = self.guards.get(entry)
        return None if guard is None else guard.changed()

    def forget(self) -> None:
        """Keep none of the programs: the model is another one by now."""
        self.kept, self.guards = {}, {}

    def find(
        self, call: ModelCall, make: Callable[[ModelCall], E], observe: Callable[[ModelCall], Guard] | None = None
    ) -> E:
        """The entry that is right for a call; `make` makes one where there is none.

        Args:
            observe: runs the model on a call that no program is known to be right for, and gives a guard.
        """
        name = type(call.model).__name__
        with one_at_a_time():
            entry = self.fitting(call)
            changed = None if entry is None else self.changed(entry)
            if changed is not None:
                log.warning("tracing %s again, since %s", name, changed)
                self.forget()
                entry = None
            if entry is not None and entry in self.guards:
                return entry
            with alone(call.model):
                return self._found(call, entry, make, observe)

    def _found(self, call: ModelCall, entry: E | None, make: Callable[[ModelCall], E], observe: Any) -> E:
        """`entry` if this model computes the same as the one it was traced from; otherwise a new one."""
        with _no_hooks():
            guard = None if observe is None else observe(call)
        if entry is not None and not self._is_right(entry, call):
            log.info(
                "%s is not like the block it was taken for: it gets programs of its own", type(call.model).__name__
            )
            self.forget()
            entry = None
        if entry is None:
            entry = self._made(call, make)
            if observe is not None and guard is not None and guard.changed() is not None:
                with _no_hooks():  # tracing has left a copy of what the model holds, or filled a cache
                    guard = observe(call)
        if entry.graph.tracer == "export":
            self.guards[entry] = guard
        return entry

    def _made(self, call: ModelCall, make: Callable[[ModelCall], E]) -> E:
        entries = self.kept.setdefault(call.kind, [])
        if entries:
            log.warning("tracing %s again: no program fits inputs of sizes %s", type(call.model).__name__, call.sizes)
        entry = make(call)
        if entry.graph.tracer == "export":
            entries.append(entry)
            for old in entries[:-_MOST]:
                self.guards.pop(old, None)
            del entries[:-_MOST]
        return entry

    def _is_right(self, entry: E, call: ModelCall) -> bool:
        """Whether the entry was traced from this model, or from one that computes the same."""
        if entry.owner is None or entry.owner is call.model:
            return True
        return computes_the_same(entry.owner, call.model, call.args, call.kwargs)

    def trace(
        self, call: ModelCall, fallback: str, prepare: Callable[[OpGraph, ModelCall], E], compare: bool = True
    ) -> E:
        """Trace the model and `prepare` an entry of its graph; where that fails for open sizes, for these sizes alone.

        Args:
            compare: run the graph once and compare it with the model.
        """
        self.traces += 1
        name = type(call.model).__name__
        with (
            keep_random_state(call.model, call.tensors),
            _no_hooks(),
        ):  # a call that traces draws what a later one draws
            graph = trace(call.model, call.args, call.kwargs, fallback=fallback, compare=compare)
            try:
                entry = prepare(graph, call)
                if not graph.dynamic or entry.sizes.accepts(call.tensors):
                    return entry
                log.info("%s: the program for open sizes is not right for a batch of one or of none", name)
            except LfpGraphError:
                raise
            except Exception as error:
                if not graph.dynamic:
                    raise _untraceable(name, error) from error
                log.info("%s does not trace for open sizes: %s", name, error)
            log.warning("%s is traced for these sizes alone: %s", name, call.sizes)
            graph = trace(call.model, call.args, call.kwargs, dynamic=False, fallback=fallback, compare=compare)
            try:
                return prepare(graph, call)
            except LfpGraphError:
                raise
            except Exception as error:
                raise _untraceable(name, error) from error


def _no_hooks() -> contextlib.AbstractContextManager[Any]:
    """Keep the caller's hooks on saved tensors (a checkpoint's, say) from those of a trace or a trial."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return contextlib.nullcontext() if hooks is None else saved_tensors_hooks(lambda t: t, lambda t: t)


def _untraceable(name: str, error: Exception) -> TraceError:
    return TraceError(
        f"{name} was traced, but its feedback could not be: {type(error).__name__}: {one_line(error, 300)}. "
        'wrap(model, engine="live") runs the model itself.'
    )
