"""What stands in place of a wrapped model's forward: traces at the first call, then runs the program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..composites.composite import Composite, log_unmoved
from ..engine.plan import make_plan
from ..engine.program import make_program
from ..errors import InputError, LfpGraphError, NonFiniteError
from ..graph.calls import flatten_input
from ..graph.graph import OpGraph
from ..randomness import keep_random_state
from ..tracing.flat import is_tracing
from ..tracing.tracer import trace
from ..tracing.verify import computes_the_same
from .autograd_function import run_program
from .programs import Entry, key_of
from .stand_in import StandIn

__all__ = ["FeedbackForward", "no_autocast", "survey"]

log = logging.getLogger("lfpgraph")
_MAX_PROGRAMS = 32


class FeedbackForward(StandIn):
    """Takes the place of `model.forward`: the same call, the same outputs, feedback on `.backward()`.

    Programs are kept per structure of the call (input tree, dtypes, ranks, modes, what requires a signal) and reused
    for every size their graph allows. Copies and pickles carry the options and trace again when first called.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        options: Mapping[str, Any],
        programs: dict[Any, list[Entry]] | None = None,
    ) -> None:
        super().__init__(model)
        self.composite = composite
        self.options = dict(options)
        self.programs: dict[Any, list[Entry]] = {} if programs is None else programs
        self.trusted: set[Entry] = set()
        self.traces = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "programs": {}, "trusted": set(), "traces": 0}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_tracing() or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        leaves, spec = flatten_input(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        state, modes = survey(self.model)
        if not any(t.requires_grad for t in (*state.values(), *tensors)):
            return self.original(*args, **kwargs)
        entry = self._program(args, kwargs, leaves, spec, tensors, state, modes)
        return self._run(entry, tensors, state)

    def _program(
        self,
        args: Any,
        kwargs: Any,
        leaves: Sequence[Any],
        spec: Any,
        tensors: Sequence[Tensor],
        state: Mapping[str, Tensor],
        modes: tuple[bool, ...],
    ) -> Entry:
        key = key_of(modes, leaves, spec, state)
        entries = self.programs.setdefault(key, [])
        for entry in entries:
            if entry.sizes.accepts(tensors):
                if entry.owner is None or entry.owner is self.model or entry in self.trusted:
                    return entry
                if computes_the_same(entry.owner, self.model, args, kwargs):
                    self.trusted.add(entry)
                    return entry
                log.info(
                    "%s is not like the block it was taken for: it gets programs of its own", type(self.model).__name__
                )
                self.programs = {}
                return self._program(args, kwargs, leaves, spec, tensors, state, modes)
        if entries:
            log.warning(
                "tracing %s again: no program fits inputs of sizes %s",
                type(self.model).__name__,
                _sizes(tensors),
            )
        entry = self._make(args, kwargs, tensors, state)
        if entry.graph.tracer == "export":
            entries.append(entry)
            del entries[:-_MAX_PROGRAMS]
        return entry

    def _make(self, args: Any, kwargs: Any, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> Entry:
        """Trace and plan; where the feedback cannot be traced for open sizes, for these sizes alone."""
        self.traces += 1
        name = type(self.model).__name__
        if self.options.get("part"):
            _refuse_state(name, args, kwargs)
        # A call that traces draws what a later one draws; and the caller's saved tensor hooks see no fake tensors.
        with keep_random_state(self.model, tensors), saved_tensors_hooks(lambda t: t, lambda t: t):
            graph = trace(self.model, args, kwargs, fallback=self.options["fallback"])
            try:
                return self._prepare(graph, tensors, state)
            except LfpGraphError:
                raise
            except Exception as error:
                if not graph.dynamic:
                    raise
                log.info("%s does not trace for open sizes: %s", name, error)
            log.warning("%s is traced for these sizes alone: %s", name, _sizes(tensors))
            graph = trace(self.model, args, kwargs, dynamic=False, fallback=self.options["fallback"])
            return self._prepare(graph, tensors, state)

    def _prepare(self, graph: OpGraph, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> Entry:
        wanted = set()
        for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
            source = tensors[placeholder.target] if placeholder.kind == "input" else state.get(placeholder.target)
            if source is not None and source.requires_grad:
                wanted.add(node)
        plan = make_plan(graph, self.composite, wanted, self.options["on_missing"])
        entry = Entry(graph, self.model)
        with no_autocast():
            entry.program = make_program(
                plan, entry.values(tensors, state), self.options["compile"], self.options["share"]
            )
        entry.sizes.watch()
        log_unmoved(self.composite, state)
        log.info(
            "traced %s: %d units, %d placeholders with feedback, %s sizes",
            type(self.model).__name__, len(plan.units), len(wanted), "dynamic" if graph.dynamic else "fixed",
        )  # fmt: skip
        return entry

    def _run(self, entry: Entry, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> Any:
        graph, program = entry.graph, entry.program
        assert program is not None
        with no_autocast():
            outputs = run_program(
                program, entry.values(tensors, state), self.options["check"], bool(self.options.get("part"))
            )
        with torch.no_grad():
            for name, value in zip(graph.mutations, outputs):
                if value is not state[name]:
                    state[name].copy_(value)
            for position, value in zip(graph.input_mutations, outputs[len(graph.mutations) :]):
                tensors[position].copy_(value)
        results = graph.user_outputs(outputs)
        if self.options["check"]:
            for result in results:
                if isinstance(result, Tensor) and result.is_floating_point() and not bool(torch.isfinite(result).all()):
                    raise NonFiniteError(
                        f"{type(self.model).__name__} returned NaN or infinity; no feedback was given."
                    )
        return graph.rebuild(results)


def survey(model: nn.Module) -> tuple[dict[str, Tensor], tuple[bool, ...]]:
    """Parameters and buffers by dotted name, a tied one under each of its names; and which modules are in training."""
    state: dict[str, Tensor] = {}
    modes: list[bool] = []

    def visit(module: nn.Module, dot: str) -> None:
        modes.append(module.training)
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    state[dot + name] = value
        for name, child in module._modules.items():
            if child is not None:
                visit(child, f"{dot}{name}.")

    visit(model, "")
    return state, tuple(modes)


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Casts are nodes of the graph, so none may be added when it runs."""
    if not any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        yield
        return
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _sizes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(list(t.shape)) for t in tensors)


def _refuse_state(name: str, args: Any, kwargs: Any) -> None:
    """A part's program knows tensors and settings; what a part would write into an object passed to it would be lost."""
    for leaf in flatten_input(args, kwargs)[0]:
        if hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor | Enum | type) and not callable(leaf):
            raise InputError(
                f"{name} is passed a {type(leaf).__name__}, which it may change, and a part of a model cannot be traced "
                "with it. Call the model without (key-value caches: use_cache=False), or wrap it whole."
            )
