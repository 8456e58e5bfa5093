"""The live engine of one model: records its run, plans what it has not seen before, and amends what autograd hands back."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..engine.plan import make_plan
from ..engine.recurrent import takes_steps_as_one
from ..errors import InputError, NonFiniteError
from ..graph.calls import flatten_output, parts_of
from ..tracing.flat import running_plainly
from ..tracing.recurrent import steps_as_one
from .amendments import amend
from .arrivals.watch import Watch
from .graph_of_record import LiveGraph, graph_of
from .interception import paused, recording
from .notes import Notes, as_inputs, as_met, forget_oldest, refs_in, tensors_in, told_of_errors, with_parts
from .record import Record
from .repeats.expected import make_ready
from .repeats.replay import Replay
from .schedule import Schedule, make_schedule

__all__ = ["LiveEngine", "changes_gradients"]

log = logging.getLogger("lfpgraph")
_UNSURE, _SETTLED = 3, 100  # runs for which all values are kept: at first; after one took another way than expected


def changes_gradients(composite: Composite) -> bool:
    """Whether a composite asks anything else of a model than its gradient."""
    return composite.structure is not None or any(
        r.rules or r.handlers or r.scale != "signal" for r in composite.rulesets
    )


class LiveEngine:
    """Gives the runs of one model feedback in place of the gradient.

    Args:
        watch: is told which feedback is on its way to which parameter.
        path: where the model is in the wrapped one, if it is a part.
        adopt: is called when the model has new parameters.

    Plans are kept by the sequence of operations: what they were, their arguments but for sizes and numbers, and which
    value went where.

    Attributes:
        plans: how many sequences have been planned.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        on_missing: str,
        check: bool,
        watch: Watch | None = None,
        path: str = "",
        adopt: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.composite, self.on_missing, self.check = model, composite, on_missing, check
        self._changes = changes_gradients(composite)
        self._bridges: dict[str, bool] = {}
        self.watch, self.path, self.adopt = watch or Watch(type(model).__name__), path, adopt
        self.schedules: dict[Any, Schedule] = {}
        self.last: dict[Any, Schedule] = {}  # by the kind of call: its mode, and which arguments it has
        self._keep_all = _UNSURE  # for how many runs yet to keep all values, in case they take another way
        self._hopeless: set[Any] = set()  # sequences of which nothing can carry reward
        self._unread: dict[Any, list[int]] = {}
        self.plans = 0
        # by identity: what tensors are in the model
        self.names: dict[int, tuple[weakref.ref[Tensor], tuple[str, str]]] = {}

    def run(self, call: Callable[..., Any], args: Sequence[Any], kwargs: Any, stand_in: Any = None) -> Any:
        """Call the model and let `.backward()` of whatever comes of it give feedback.

        Args:
            stand_in: what stands in place of the model's own call, if it is that which is called.

        Raises:
            NoRuleError: with on_missing="error", an operation has no rule.
        """
        if not self._changes:
            with running_plainly():
                return call(*args, **kwargs)
        if any(type(x) is not Tensor and isinstance(x, nn.Parameter) for x in (*args, *kwargs.values())):
            args, kwargs = as_inputs(self.model, args, kwargs)
        kind = self.model.training, len(args), tuple(kwargs), torch._C._current_graph_task_id() != -1
        leaves, last = _Leaves(self, args, kwargs), self.last.get(kind)
        again = last is not None and last.simple is not None and not self._keep_all and not kind[3]
        record: Any = None if again else Record(leaves, last, self.path, self._keep_all > 0)
        if last is not None and again:
            record = Replay(last, leaves, self.path, self.watch)
        self.watch.begin()
        try:
            try:
                left, result = record.along(self.model, stand_in, args, kwargs) if again else (None, None)
                if left is None or left:
                    with steps_as_one(lambda: takes_steps_as_one(self.composite)), recording(record):
                        result = reduce(lambda x, part: part(x), left, result) if left else call(*args, **kwargs)
            except Exception:  # of a hook that has what it wants, perhaps: features that were taken give feedback, too
                self._keep_all = _SETTLED
                with paused(), told_of_errors():
                    self._finish(record.record() if again else record, None, kind, stopped=True)
                raise
            finally:
                self.watch.end()
            with paused():
                if not again:
                    self._finish(record, result, kind)
                elif not record.amend(flatten_output(result)[0]):
                    self._finish(record.record(), result, kind)
        finally:
            record.close()
        return result

    def _finish(self, record: Record, result: Any, kind: Any, stopped: bool = False) -> None:
        tensors = record.shadows.show(flatten_output(result)[0])
        outputs = tuple(dict.fromkeys(record.number(t) for t in tensors))
        record.release()
        for node in record.checkpoints:
            if not isinstance(node.run_function, _Rerun):
                node.run_function = _Rerun(self, node.run_function)
        if not record.steps_done or not any(record.follows):
            return
        ends = self._ends(record, outputs)
        leaves = (*((leaf.kind, leaf.name, record.look(leaf.value)) for leaf in record.leaves), *record.begun)
        last = record.expected
        if last is not None and record.steps_done == len(last.keys) and (leaves, outputs, ends) == last.around:
            schedule: Schedule | None = last
        else:
            record.recall()
            key = (tuple(record.keys), leaves, outputs, ends)
            if key in self._hopeless:
                return
            schedule = self.schedules.get(key)
        if schedule is None:
            try:
                schedule = self.schedules[key] = self._plan(record, outputs + ends)
                schedule.around, schedule.unread = (leaves, outputs, ends), self._unread[key[0]]
                self.plans += 1
                forget_oldest(self.schedules)
            except InputError as error:
                self._hopeless.add(key)
                if not stopped:
                    log.warning("%s gives no feedback, only gradients: %s", type(self.model).__name__, error)
                return
        self.last[kind] = schedule
        forget_oldest(self.last)
        self._keep_all = _SETTLED if record.parted else max(0, self._keep_all - 1)
        if not self._keep_all:
            make_ready(schedule, record, self.check)
        if self.check and not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise NonFiniteError(f"{type(self.model).__name__} returned NaN or infinity; no feedback was given.")
        if lost := amend(schedule, record, outputs, self.check, self.watch):
            log.warning(
                "%s took another way than in the call before: in this step %d operations hand on the plain gradient (%s)",
                type(self.model).__name__, len(lost), ", ".join(lost[:3]),
            )  # fmt: skip

    def _ends(self, record: Record, outputs: Sequence[int]) -> tuple[int, ...]:
        """Values besides the outputs that nothing in the run reads and somebody still holds: a loss kept on the model, say."""
        last = record.expected
        if last is not None and record.steps_done == len(last.keys):
            return tuple(n for n in last.unread if n not in outputs and record.is_held(n))
        record.recall()
        steps = tuple(record.keys)
        ends = self._unread.get(steps)
        if ends is None:
            read = {n for template in record.all_templates() for n in refs_in(template)}
            ends = self._unread[steps] = [n for n in record.seen if n not in read]
            forget_oldest(self._unread)
        return tuple(n for n in ends if n not in outputs and record.is_held(n))

    def _plan(self, record: Record, outputs: Sequence[int]) -> Schedule:
        live = self._graph(record, outputs)
        nodes = live.graph.placeholder_nodes
        wanted = {node for node, leaf in zip(nodes, record.leaves) if record.follows[leaf.value]}
        wanted |= {node for node, number in live.value.items() if number in record.begun}
        values = [as_met(leaf.tensor.detach(), record.shapes[leaf.value]) for leaf in record.leaves]
        plan = make_plan(live.graph, self.composite, wanted, self.on_missing, values)
        if record.own:
            names = sorted(set(record.own))
            log.info("%s: the own backward of %s is used as it is", type(self.model).__name__, ", ".join(names))
        log.info("%s: planned %d operations, live", type(self.model).__name__, record.steps_done)
        schedule = make_schedule(plan, live, record.keys, record.follows, record.undone)
        schedule.notes = Notes(record.all_templates(), record.paths, record.lines)
        schedule.steps = record.steps
        return schedule

    def _graph(self, record: Record, outputs: Sequence[int]) -> LiveGraph:
        """The graph of a run; where none of its arguments can carry reward, what the run found elsewhere is its input.

        A model may make its tensors from text, pictures or numbers, or keep its coordinates in a buffer.
        """
        try:
            return graph_of(record, outputs)
        except InputError:
            unused = record.name_leaf.unused(record.known)
            if unused is not None:  # parameters alone make no activation, as in a trace
                record.number(unused)
                return graph_of(record, outputs)
            found = [leaf for leaf in record.leaves if leaf.kind in ("constant", "buffer")]
            if not found:
                raise
            for leaf in found:
                leaf.kind, leaf.name = "input", -1
            return graph_of(record, outputs)

    def name(self, tensor: Tensor) -> tuple[str, str] | None:
        """What a tensor is in the model: ("parameter" or "buffer", its dotted name), or None."""
        found = self.names.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def has_no_name(self, parameter: Tensor) -> tuple[str, str]:
        """Note a parameter that has no place in the model, so that it is not looked for in every run."""
        self.names[id(parameter)] = (weakref.ref(parameter), ("parameter", ""))
        return "parameter", ""

    def bridges(self, path: str) -> bool:
        """Whether a rule in a module may hand reward on where autograd stops."""
        found = self._bridges.get(path)
        if found is None and not (self.composite.by_place or self.composite.structure is not None):
            rules = self.composite.ruleset(path.removeprefix(self.path).removeprefix("."))
            found = self._bridges[path] = rules.rules or bool(rules.handlers)
        return found is not False

    def look_again(self) -> None:
        """Read the names of the model's parameters and buffers anew; of others that were met, keep what they were."""
        self.adopt()
        self.names = {key: found for key, found in self.names.items() if found[0]() is not None}
        for kind, named in (("buffer", self.model.named_buffers()), ("parameter", self.model.named_parameters())):
            for name, tensor in named:
                for part in with_parts(tensor):
                    self.names[id(part)] = (weakref.ref(part), (kind, name))


class _Rerun:
    """What a reentrant checkpoint runs again in the backward pass: a run of its own, in which the rules apply."""

    def __init__(self, engine: LiveEngine, function: Callable[..., Any]) -> None:
        self.engine, self.function = engine, function

    def __call__(self, *args: Any) -> Any:
        return self.engine.run(self.function, args, {})


class _Leaves:
    """Says of tensors that a run finds what they are."""

    def __init__(self, engine: LiveEngine, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.engine, self.args, self.kwargs, self.bridges = engine, args, kwargs, engine.bridges
        self.inputs: dict[int, int] | None = None
        self.looked = False

    def givens(self) -> list[Tensor]:
        """The tensors that the run was given and that autograd follows."""
        return [t for t in tensors_in((self.args, self.kwargs)) if t.requires_grad]

    def unused(self, known: Callable[[Tensor], int | None]) -> Tensor | None:
        """A float tensor that the run was given, and neither read nor left there itself (states in a tree's nodes)."""
        given = (t for t in tensors_in((self.args, self.kwargs)) if t.is_floating_point() or t.is_complex())
        return next((t for t in given if known(t) is None), None)

    def __call__(self, tensor: Tensor) -> tuple[str, Any]:
        known = self.engine.names.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        for i, x in enumerate(self.args):
            if x is tensor:
                return "input", i
            if not isinstance(x, Tensor):
                break
        if self.inputs is None:
            self.inputs = {id(t): i for i, t in enumerate(tensors_in((self.args, self.kwargs)))}
        if id(tensor) in self.inputs:
            return "input", self.inputs[id(tensor)]
        is_parameter = tensor.requires_grad and tensor.grad_fn is None and isinstance(tensor, nn.Parameter)
        if not self.looked or is_parameter:  # which may have its place in the model only while a part of it runs (FSDP)
            self.looked = True
            self.engine.look_again()
            found = self.engine.name(tensor)
            if found is not None:
                return found
        if is_parameter:
            return self.engine.has_no_name(tensor)
        if tensor.requires_grad:
            return "input", -1
        given = tensors_in((self.args, self.kwargs)) if type(tensor) is not Tensor else []
        is_alias = torch._C._is_alias_of  # type: ignore[attr-defined]
        same = [i for part in parts_of(tensor) for i, x in enumerate(given) if is_alias(part, x)]
        return ("input", same[0]) if same else ("constant", None)
