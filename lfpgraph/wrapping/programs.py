"""The programs of a model: made when a call first needs one, and kept for the calls they are right for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks

from ..engine.program import Program
from ..errors import LfpGraphError, TraceError, one_line
from ..graph.graph import OpGraph, is_statistic
from ..graph.sizes import Sizes
from ..randomness import keep_random_state
from ..threads.turns import alone, one_at_a_time
from ..tracing.guards import Guard
from ..tracing.tracer import trace
from ..tracing.verify import computes_the_same
from .model_call import ModelCall

__all__ = ["Entry", "Programs"]

log = logging.getLogger("lfpgraph")
_MOST = 32  # programs kept for calls that differ in sizes alone


@dataclass(eq=False)
class Entry:
    """A program of a model.

    Attributes:
        owner: the model it was traced from; None where no other model shares it.
        sizes: those that it is right for.
        unseen: buffers that the model writes without autograd's notice, as batch norms write their statistics, so that
            what other calls have saved of them can still be used.
        layout: of all tensors, where the model asks how they lie in memory (`ModelCall.layout`); None if it is right for all.
        writes: buffers other than counters and batch norms' statistics, and inputs, that it writes to; nothing else may lie in
            their memory.
        untouched: by place among the model's outputs, the place among the graph's arguments of one that is returned as it is.
    """

    program: Program
    owner: nn.Module | None = None
    layout: tuple[Any, ...] | None = None
    sizes: Sizes = field(init=False)
    unseen: set[str] = field(init=False)
    untouched: dict[int, int] = field(init=False)
    writes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = Sizes(self.graph)
        written = list(zip(self.graph.mutations, self.graph.output_nodes))
        self.unseen = {name for name, node in written if isinstance(node, fx.Node) and is_statistic(node)}
        places = {node: i for i, node in enumerate(self.graph.placeholder_nodes)}
        self.writes = [
            n for n in self.graph.mutations if n not in self.unseen and not n.endswith("num_batches_tracked")
        ]
        self.writes += [f"input {i}" for i in self.graph.input_mutations]
        self.untouched = {i: places[node] for i, node in enumerate(self.graph.user_output_nodes) if node in places}

    def lies_as(self, call: ModelCall) -> bool:
        """Whether a call's tensors lie in memory as this program needs them to."""
        if self.layout is not None and self.layout != call.layout:
            return False
        return not self.writes or call.overlaps(self.writes) is None

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
        kept = self.kept.get(call.kind, ())
        return next((entry for entry in kept if entry.sizes.accepts(call.tensors) and entry.lies_as(call)), None)

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
