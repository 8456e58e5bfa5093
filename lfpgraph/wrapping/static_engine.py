"""The static engine of one model: traces a call that is new to it, and runs the program for as long as it is the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..engine.options import Options
from ..engine.plan import make_plan
from ..engine.program import make_program
from ..engine.recurrent import takes_steps_as_one
from ..engine.static import no_autocast
from ..errors import LiveOnlyError, NonFiniteError, TraceError
from ..graph.calls import flatten_output
from ..graph.graph import OpGraph, ancestors
from ..tracing.flat import attributes_of
from ..tracing.guards import Guard, Observation, try_out
from ..tracing.recurrent import steps_as_one
from ..tracing.tracer import refuse_difference
from ..tracing.verify import differ
from .autograd_function import Feed, run_program
from .model_call import ModelCall
from .plain_values import made_by_its_run
from .programs import Entry, Programs

__all__ = ["StaticEngine"]

log = logging.getLogger("lfpgraph")


class StaticEngine:
    """Runs a model's forward as a program: the same call, the same outputs, feedback on `.backward()`.

    Programs are kept by the structure of the call (input tree, dtypes, ranks, modes, what requires a signal) and reused
    for every size that their graph allows. Before a call is traced the model's own forward is run once and observed. What
    a program would lose is refused; what it depends on is looked at again before each call, and traced anew if it has changed.

    Args:
        path: where the model is in the wrapped one, for messages.
        like: the programs of a block that looks the same, to be shared with it (see `Programs`).
        feed: is told of each parameter and the feedback that is on its way to it.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        options: Options,
        path: str = "",
        like: Programs[Entry] | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.model, self.composite, self.options = model, composite, options
        self.name = f"{path} ({type(model).__name__})" if path else type(model).__name__
        self.feed = feed
        self.programs: Programs[Entry] = Programs(like)

    @property
    def traces(self) -> int:
        """How many times the model has been traced."""
        return self.programs.traces

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's forward.

        Raises:
            LiveOnlyError: the model does, in this call, what a program cannot keep. TraceError: it cannot be traced.
        """
        call = ModelCall(self.model, args, kwargs)
        if not call.follows:
            return self.model.forward(*args, **kwargs)
        return self.run(call)

    def run(self, call: ModelCall, entry: Entry | None = None) -> Any:
        """Run the program for a call, made first where there is none.

        Args:
            entry: a program that has just been found right for the call.
        """
        if entry is None or entry not in self.programs.guards:
            entry = self.programs.find(call, self._make, self._observe)
        return self._run(entry, call)

    def _observe(self, call: ModelCall) -> Guard:
        """Run the model's own forward on a call, and see that a program can stand for it."""
        if call.not_made:
            raise self._refusal(
                f"its first call makes its parameters ({call.not_made[0]}); call it once before, under torch.no_grad()"
            )
        if call.odd is not None:
            hint = "key-value caches: use_cache=False"
            raise self._refusal(f"it is given a {type(call.odd).__name__}, which a program cannot follow ({hint})")
        seen, result = try_out(self.model, call.args, call.kwargs)
        why = seen.why_live
        tensors, leaves = flatten_output(result)[:2]
        if any(isinstance(t, nn.Parameter) for t in tensors):
            why = why or "it returns a parameter itself, whose gradient no program sees"
        for kind, leaf in leaves:
            made = made_by_its_run(leaf) if kind == "value" and why is None else None
            if made is not None or (kind == "value" and callable(leaf)):
                why = why or f"it returns a {made or type(leaf).__name__}, which only its own run can make"
        if named := [name for t in tensors for name in attributes_of(t)]:
            why = why or f"it returns a tensor with the attribute {named[0]}, which a program's have not"
        if why is not None or seen.guard is None:
            raise self._refusal(why or "its run could not be observed")
        if seen.shortcut is not None:
            log.info("%s %s. Its program goes the way that it takes while traced", self.name, seen.shortcut)
        call.expected, call.trial = [t.detach() for t in tensors], seen
        call.followed = [t.requires_grad and t.is_floating_point() for t in tensors]
        return seen.guard

    def _refusal(self, why: str) -> LiveOnlyError:
        return LiveOnlyError(
            f'{self.name} cannot run by the static engine: {why}. wrap(model, engine="auto") or engine="live" '
            "runs the model itself."
        )

    def _make(self, call: ModelCall) -> Entry:
        compare = self.options.compile  # what is compiled draws its own random numbers; else the first run is compared
        with steps_as_one(lambda: takes_steps_as_one(self.composite)):
            return self.programs.trace(call, self.options.fallback, self._prepare, compare)

    def _prepare(self, graph: OpGraph, call: ModelCall) -> Entry:
        """Plan a traced graph and make its program."""
        written = [*graph.mutations, *(f"input {position}" for position in graph.input_mutations)]
        if call.trial is not None:
            self._refuse_writes(call, call.trial, written)
        values = call.values(graph)
        wanted = {
            node
            for node, placeholder, value in zip(graph.placeholder_nodes, graph.placeholders, values)
            if placeholder.kind != "constant" and isinstance(value, Tensor) and value.requires_grad
        }
        plan = make_plan(graph, self.composite, wanted, self.options.on_missing, values)
        entry = Entry(make_program(plan, values, self.options.compile, self.options.share, writes=True), self.model)
        if call.trial is not None and call.trial.asks_layout:
            entry.layout = call.layout
        self._refuse_cuts(call, entry, {place - len(written) for place in entry.program.signal_outputs})
        log.info(
            "traced %s: %d units, %d placeholders with feedback, %s sizes",
            type(self.model).__name__, len(plan.units), len(wanted), "dynamic" if graph.dynamic else "fixed",
        )  # fmt: skip
        return entry

    def _refuse_cuts(self, call: ModelCall, entry: Entry, rewarded: set[int]) -> None:
        """See that no output is cut off from what feedback is for, unless the model's own is as well."""
        known, wanted = rewarded | entry.untouched.keys(), entry.program.plan.wanted
        for i, (node, followed) in enumerate(zip(entry.graph.user_output_nodes, call.followed)):
            if (
                followed
                and i not in known
                and any(n.target is torch.ops.aten.detach.default and n.args[0] in wanted for n in ancestors([node]))
            ):
                raise self._refusal(
                    f"output {i} of its trace is cut off from its parameters, and the model's own is not"
                )

    def _refuse_writes(self, call: ModelCall, seen: Observation, written: Sequence[str]) -> None:
        """See that nobody can tell the model's own writes, to its buffers or inputs, from those after its program."""
        tensors = dict(self.model.named_buffers(remove_duplicate=False))
        shown = {id(tensors[name]) for name in written if name in tensors}  # a buffer may have several names
        if lost := [name for name in sorted(seen.written.difference(written)) if id(tensors.get(name)) not in shown]:
            raise self._refusal(f"it writes to {lost[0]} in a way that a trace does not show")
        if seen.runs_again is not None and written:
            raise self._refusal(
                f"a checkpoint ({seen.runs_again}) runs a part of it again in the backward pass, which may write to "
                f"{written[0]} a second time"
            )
        if (shared := call.overlaps(written)) is not None:
            raise self._refusal(f"it writes to {shared}, in whose memory another of its tensors lies")
        if both := [name for name in written if name in seen.returned]:
            raise self._refusal(f"it returns {both[0]}, to which it writes: the result is to change with later writes")

    def _compare(self, graph: OpGraph, call: ModelCall, found: Sequence[Any], expected: list[Tensor]) -> None:
        """Compare a program's first outputs with those of the model's own run on the same call."""
        call.expected = None
        try:
            refuse_difference(graph, call.model, call.args, call.kwargs, differ(found, expected))
        except TraceError:
            self.programs.forget()
            raise

    def _compare_draws(self, call: ModelCall, before: Tensor) -> None:
        """See that a program has drawn as many random numbers as the model did, or every later one would be another."""
        drawn = None if call.trial is None else call.trial.drawn
        if drawn is not None and not torch.equal(torch.get_rng_state(), drawn):
            torch.set_rng_state(before)
            self.programs.forget()
            raise self._refusal("its program draws other random numbers than the model itself")

    def _run(self, entry: Entry, call: ModelCall) -> Any:
        graph, check, values = entry.graph, self.options.check, call.values(entry.graph)
        expected = None if self.options.compile else call.expected
        random_state = None if expected is None else torch.get_rng_state()
        new: dict[str, Tensor] = {}  # of the buffers
        if expected is not None:  # the run may be refused yet, and then has written nothing
            for place in entry.program.written:
                new[graph.placeholders[place].target] = values[place] = values[place].clone()
        with no_autocast() if torch._C._is_any_autocast_enabled() else contextlib.nullcontext():
            outputs = run_program(entry.program, values, check, self.options.part, self.feed)
        if expected is not None and random_state is not None:
            self._compare_draws(call, random_state)
            self._compare(graph, call, graph.user_outputs(outputs), expected)
        new |= {name: value for name, value in zip(graph.mutations, outputs) if value is not None}
        with torch.no_grad() if new or graph.input_mutations else contextlib.nullcontext():
            for name, value in new.items():
                if value is not call.state[name]:
                    (call.state[name].data if name in entry.unseen else call.state[name]).copy_(value)
            for position, value in zip(graph.input_mutations, outputs[len(graph.mutations) :]):
                call.tensors[position].copy_(value)
        results = list(graph.user_outputs(outputs))
        for place, given in entry.untouched.items():
            results[place] = values[given]
        for result in results if check else ():
            if isinstance(result, Tensor) and result.is_floating_point() and not bool(torch.isfinite(result).all()):
                raise NonFiniteError(f"{type(self.model).__name__} returned NaN or infinity; no feedback was given.")
        return graph.rebuild(results)
