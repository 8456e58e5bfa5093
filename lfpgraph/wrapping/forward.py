"""The static engine, in place of a model's forward: traces at the first call, then runs the program."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite, log_unmoved
from ..engine.options import Options
from ..engine.plan import make_plan
from ..engine.program import make_program
from ..engine.static import no_autocast
from ..errors import InputError, NonFiniteError
from ..graph.calls import objects_with_state
from ..graph.graph import OpGraph
from ..tracing.flat import is_tracing
from .autograd_function import Feed, run_program
from .programs import Entry, ModelCall, Programs
from .stand_in import StandIn

__all__ = ["FeedbackForward"]

log = logging.getLogger("lfpgraph")


class FeedbackForward(StandIn):
    """Takes the place of `model.forward`: the same call, the same outputs, feedback on `.backward()`.

    Programs are kept by the structure of the call (input tree, dtypes, ranks, modes, what requires a signal) and reused
    for every size that their graph allows. Copies and pickles keep the options and trace again when first called.

    Args:
        like: the programs of a block that looks the same, to be shared with it (see `Programs`).
        feed: is told of each parameter and the feedback that is on its way to it.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        options: Options,
        like: Programs[Entry] | None = None,
        feed: Feed | None = None,
    ) -> None:
        super().__init__(model)
        self.composite = composite
        self.options = options
        self.feed = feed
        self.programs: Programs[Entry] = Programs(like)

    @property
    def traces(self) -> int:
        """How many times the model has been traced."""
        return self.programs.traces

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_tracing() or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        call = ModelCall(self.model, args, kwargs)
        if not call.follows:
            return self.original(*args, **kwargs)
        return self.run(self.find(call), call)

    def find(self, call: ModelCall) -> Entry:
        """The program for a call; made if there is none."""
        return self.programs.find(call, self._make)

    def _make(self, call: ModelCall) -> Entry:
        if self.options.part:
            _refuse_state(call)
        return self.programs.trace(call, self.options.fallback, self._prepare)

    def _prepare(self, graph: OpGraph, call: ModelCall) -> Entry:
        """Plan a traced graph and make its program."""
        values = call.values(graph)
        wanted = {
            node
            for node, placeholder, value in zip(graph.placeholder_nodes, graph.placeholders, values)
            if placeholder.kind != "constant" and isinstance(value, Tensor) and value.requires_grad
        }
        plan = make_plan(graph, self.composite, wanted, self.options.on_missing, values)
        entry = Entry(make_program(plan, values, self.options.compile, self.options.share), self.model)
        if self.feed is None:
            log_unmoved(self.composite, call.state, plan.names_asleep)
        log.info(
            "traced %s: %d units, %d placeholders with feedback, %s sizes",
            type(self.model).__name__, len(plan.units), len(wanted), "dynamic" if graph.dynamic else "fixed",
        )  # fmt: skip
        return entry

    def run(self, entry: Entry, call: ModelCall) -> Any:
        """Run a program."""
        self.calls += 1
        graph, check = entry.graph, self.options.check
        with no_autocast():
            outputs = run_program(entry.program, call.values(graph), check, self.options.part, self.feed)
        with torch.no_grad():
            for name, value in zip(graph.mutations, outputs):
                if value is not call.state[name]:
                    (call.state[name].data if name in entry.unseen else call.state[name]).copy_(value)
            for position, value in zip(graph.input_mutations, outputs[len(graph.mutations) :]):
                call.tensors[position].copy_(value)
        results = graph.user_outputs(outputs)
        for result in results if check else ():
            if isinstance(result, Tensor) and result.is_floating_point() and not bool(torch.isfinite(result).all()):
                raise NonFiniteError(f"{type(self.model).__name__} returned NaN or infinity; no feedback was given.")
        return graph.rebuild(results)


def _refuse_state(call: ModelCall) -> None:
    """Refuse objects with a state as arguments of a part: what the part writes into them would be lost in its program."""
    for leaf in objects_with_state(call.leaves):
        raise InputError(
            f"{type(call.model).__name__} is passed a {type(leaf).__name__}, which it may change, and a part of a model "
            "cannot be traced with it. Call the model without (key-value caches: use_cache=False), or wrap it whole."
        )
