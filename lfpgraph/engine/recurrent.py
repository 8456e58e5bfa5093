"""Rules of a composite for the steps of a recurrent layer (`rules.recurrent`): the slopes of `slopes`, and `walk`."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from ..composites.composite import Composite
from ..graph.graph import module_path
from ..native.loops import loop_of_graph
from ..numerics import epsilon_factor
from ..passes.gates import of_sum
from ..passes.written_out import run_written_out, walk_written_out
from ..registry import GENERAL, Call, find_rule, rule
from ..rules.loops import ADDED, LSTM, RECURRENT, answer_instead, cell_of, like_feedback, on_a_tape
from ..rules.recurrent import Slopes, gradient_slopes, walk
from ..rules.recurrent_loops import is_worth_a_loop, on_device_of, walk_in_loop
from ..rules.views import vjp
from .slopes import Step, backward_graph, slopes_graph, slopes_program

__all__ = ["WRITTEN_OUT", "keep_sums", "takes_steps_as_one"]

aten = torch.ops.aten
_PARTS = (
    aten.add.Tensor, aten.linear.default, aten.mul.Tensor, aten.relu.default, aten.sigmoid.default, aten.split.Tensor,
    aten.sub.Tensor, aten.tanh.default,
)  # fmt: skip
_numbers = itertools.count()
_made: deque[tuple[Any, Composite, Any]] = deque(maxlen=64)  # programs: layers that are alike share theirs
_known: weakref.WeakValueDictionary[int, LoopRule] = weakref.WeakValueDictionary()

_library = torch.library.Library("lfpgraph_loops", "DEF")
_library.define(
    "feedback(Tensor?[] signals, Tensor x, Tensor[] first, Tensor[] states, Tensor? z, Tensor w, int rule, float? form)"
    " -> Tensor[]"
)


def takes_steps_as_one(composite: Composite) -> bool:
    """Whether a composite's rules are such that the steps of a recurrent layer can be one operation.

    They are where the product with the state hands back its true vector-Jacobian product and all else in a cell is
    elementwise: where nobody has put rules of his own in place of the library's.
    """
    plain = all(not ruleset.handlers for ruleset in composite.rulesets) and not composite.by_place
    rules = [find_rule(op) for op in _PARTS]
    own = any(rule is not None and rule.source == "user" for rule in rules)
    return plain and not own and not composite.online


def _rule_of(node: fx.Node, composite: Composite) -> LoopRule:
    """The rule that a composite has for one of the operations, at its place in a model."""
    ruleset = composite.ruleset(module_path(node))
    follows = ruleset.rules == composite.default.rules
    structure = composite.structure if follows else None
    return LoopRule(node, replace(composite, default=ruleset, overrides=(), structure=structure))


class LoopRule:
    """Hands signals back through the steps of a recurrent layer.

    Args:
        node: the operation in the model's graph.
        composite: its rules.
    """

    def __init__(self, node: fx.Node, composite: Composite) -> None:
        self.cell, self.composite = cell_of(node.target, node.args), composite
        arguments: Any = node.args
        w, biased = arguments[-3:-1] if self.cell != "lstm" else arguments[-2:]
        self.step = self.cell, int(w.meta["val"].shape[1]), biased is not None
        self.kinds: tuple[str, ...] = ()  # of the states before the first step
        self._programs: dict[Any, list[Any]] = {}  # asked for at each backward pass
        self.number = next(_numbers)
        _known[self.number] = self

    def __call__(self, call: Call, s: Any, x: Tensor, *rest: Any) -> list[Tensor | None]:
        states, z = list(call.output[:-1]), call.output[-1]
        first, w, b = list(rest[: len(states)]), rest[len(states)], rest[len(states) + 1]
        form = getattr(call, "form", None)
        pairs = list(zip(call.active, call.weightlike))[1 : len(states) + 1]
        self.kinds = tuple("active" if a else "weight-like" if made else "constant" for a, made in pairs)
        answers = torch.ops.lfpgraph_loops.feedback(list(s[:-1]), x, first, states, z, w, self.number, form)
        epsilon = self.composite.default.epsilon
        if self.kinds[0] != "active" and epsilon:
            call.stabilized = epsilon  # see `slopes.Step`
            if "active" in self.kinds:
                answers[2] = epsilon_factor(answers[2], first[1], epsilon)
        if getattr(call, "beside_gradient", False):
            answer_instead(z, answers)
        return list(answers) if b is not None else list(answers[:-1])

    def make(self, how: Callable[..., Any], form: float | None, w: Tensor) -> list[Any]:
        """What a function of `slopes` makes for the steps behind the first, and for the first.

        Args:
            form: of the signals at the states, None for raw ones. w: a tensor like the weights.
        """
        key = how, form, w.dtype, w.device, self.kinds
        if key not in self._programs:
            steps = (
                Step(*self.step, w.dtype, w.device, kinds, self.kinds[0] != "active")
                for kinds in (("active",) * len(self.kinds), self.kinds)
            )
            self._programs[key] = [_once(how, step, self.composite, form) for step in steps]
        return self._programs[key]


def _once(how: Callable[..., Any], step: Step, composite: Composite, form: float | None) -> Any:
    """What a function makes, the same for layers that are alike."""
    for key, known, made in list(_made):
        if key == (how, step, form) and known == composite:
            return made
    made = how(step, composite, form)
    _made.append(((how, step, form), composite, made))
    return made


def _loop(step: Step, composite: Composite, form: float | None) -> Any:
    return _compiled(step, _once(backward_graph, step, composite, form))


def _loop_of_sum(step: Step, composite: Composite, form: float | None) -> Any:
    graph = of_sum(_once(backward_graph, step, composite, form))
    assert graph is not None, "keep_sums has looked"
    return _compiled(step, graph)


def _compiled(step: Step, graph: fx.Graph) -> Any:
    return loop_of_graph(graph, step.width, step.dtype, step.device)


def keep_sums(graph: fx.Graph) -> None:
    """Let steps whose walk back reads nothing of their two products but their sum keep that alone: half as much.

    Args:
        graph: a joint graph, forward and feedback.
    """
    for node in graph.find_nodes(op="call_function", target=_FEEDBACK):
        given: Any = node.args
        x, (z, w, rule, form) = given[1], given[4:]
        steps = z.args[0]
        if steps.target not in (LSTM, RECURRENT) or steps.args[0] is not x or len(z.users) > 1:
            continue
        with on_a_tape():
            if None in map(of_sum, _known[rule].make(backward_graph, form, w.meta["val"])):
                continue
        h, *rest = steps.args[1:]
        states, (w, b) = ([h, rest.pop(0)] if steps.target is LSTM else [h]), rest[:2]
        with graph.inserting_before(steps):
            added = graph.call_function(ADDED, (x, states, w, b, cell_of(steps.target, steps.args)))
        added.meta = steps.meta
        steps.replace_all_uses_with(added)
        graph.erase_node(steps)
        node.args = given[0], z, *given[2:4], None, *given[5:]


def _on_steps(program: Callable[..., Any], *given: Tensor) -> Slopes:
    """A program of rows, run on steps."""
    shape = given[0].shape[:2]
    found = program(*(t.flatten(0, 1) for t in given))
    return Slopes(*tree_map(lambda k: k if k is None else k.unflatten(0, shape), found))


def _feedback(
    signals: Sequence[Tensor | None], x: Tensor, first: list[Tensor], states: list[Tensor], z: Tensor | None, w: Tensor,
    rule: int, form: float | None,
) -> list[Tensor]:  # fmt: skip
    with on_a_tape():
        loops = _known[rule].make(_loop if z is not None else _loop_of_sum, form, w) if is_worth_a_loop(x) else []
        has_loops = loops != [] and None not in loops
        programs = [] if has_loops else _known[rule].make(slopes_program, form, w)
    slopes = [partial(_on_steps, program) for program in programs]
    given = signals, x, first, states
    with on_device_of(x):
        if has_loops:
            s_x, ends, s_w, s_b = walk_in_loop(loops, *given, z, w)
        else:
            s_x, ends, s_w, s_b = walk(slopes, *given, x.new_zeros(()).expand_as(x) if z is None else z, w)
    return [s_x, *ends, s_w, s_b]


_FEEDBACK = torch.ops.lfpgraph_loops.feedback.default
_library.impl("feedback", _feedback, "CompositeExplicitAutograd")
torch.library.register_fake("lfpgraph_loops::feedback", lambda signals, *args: like_feedback(*args[:5]), lib=_library)


rule(LSTM, RECURRENT, family=GENERAL, source="the rules of one step", made_by=_rule_of, override=True)(vjp)


def _slopes_of(rule: int, form: float | None, w: Tensor) -> list[Any]:
    with on_a_tape():
        return _known[rule].make(slopes_graph, form, w)


def _gradient(gs: Sequence[Tensor | None], *given: Any) -> list[Tensor]:
    with on_a_tape():
        return walk_written_out([partial(gradient_slopes, given[-1])] * 2, gs, *given[:-1])


WRITTEN_OUT: dict[Any, Callable[..., Any]] = {  # operation -> the same in operations of ATen, none of them in place
    LSTM: lambda x, h, c, w, b: run_written_out("lstm", x, (h, c), w, b),
    RECURRENT: lambda x, h, w, b, cell: run_written_out(cell, x, (h,), w, b),
    _FEEDBACK: lambda s, x, first, states, z, w, rule, form: walk_written_out(
        _slopes_of(rule, form, w), s, x, first, states, z, w
    ),
    torch.ops.lfpgraph_steps.backward.default: _gradient,
}
