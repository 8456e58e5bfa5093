"""The amendments of a schedule, put on the autograd nodes of a run as hooks.

A hook holds detached values and numbers, never a node of the graph: a node holds its hooks, and would otherwise hold
itself. What a hook has used it lets go, unless the graph is to be kept for another backward pass.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..engine.call import as_signals
from ..errors import NonFiniteError, RuleError
from ..kernels import halved_factor
from ..numerics import epsilon_factor, guarded, stabilize
from .arrivals.references import owned
from .arrivals.watch import Watch
from .arrivals.ways import goes_on, slots_of
from .bridges import LARGE, nothing, wake
from .call import LiveCall
from .kept import Remade, is_alone
from .notes import is_alive, is_compressed
from .parameters import Scale, is_differentiated, replaced, tap
from .record import Record
from .repeats.aliases import scaled_by
from .repeats.factors import Factor, LoneFactor, is_usual, must_be_true
from .schedule import Amendment, Schedule

__all__ = ["amend"]

log = logging.getLogger("lfpgraph")


def amend(
    schedule: Schedule, record: Record, outputs: Sequence[int], check: bool, watch: Watch | None = None
) -> list[str]:
    """Put a schedule's hooks on a run; returns the names of operations whose values were not kept."""
    given: list[Any] = [None] * len(outputs)  # the signals at the outputs, filled in as they arrive
    taps = check or schedule.looks_at_outputs or not any(a.factors for a in schedule.amendments)
    for place, number in enumerate(outputs if taps else ()):
        tap(record, number, given, place, check, watch)
    own_reads = {number for number, _, _ in record.own_reads}
    for place, how in schedule.parameters:
        leaf = record.leaves[place]
        edge = record.edge_of.get(leaf.value)
        if edge is not None and not (how.plain and watch is None):
            scale = Scale(schedule.plan, how, leaf.tensor, record.shapes[leaf.value], watch)
            alias = record.aliases.get(leaf.value)
            if scaled_by(edge, scale):
                pass
            elif alias is not None and alias.numel() < LARGE:
                alias._backward_hooks = {0: scale.at_alias}  # `register_hook` without its handle
                edge[0]._register_hook_dict(alias)
            else:
                edge[0].register_prehook(scale.before)
            for number, node, slot in record.own_reads if leaf.value in own_reads else ():
                if number == leaf.value:
                    node.register_hook(scale.at(slot))
    lost = []
    if record.expected is not schedule:
        record.keep_only(schedule.kept_values)
        schedule.unshared = {n for n in schedule.factors_alone if is_alone(record.kept[n])}
    for amendment in schedule.amendments:
        if (factor := amendment.lone) is not None:
            edge = record.edge_of.get(amendment.exits[0])
            away = factor.measure in record.remade or factor.measure in record.halved
            value = None if away else record.kept[factor.measure]
            if edge is not None and is_alive(edge[0]) and is_usual(value, LARGE):
                hook = LoneFactor(edge[1], value, factor.epsilon, factor.positive, watch)
                edge[0].register_prehook(hook)
                continue
        edges = [edge if edge and is_alive(edge[0]) else None for edge in map(record.edge_of.get, amendment.exits)]
        if not any(edges):
            continue
        if not _Hooks(amendment, schedule, record, given, check, watch).install(record, edges):
            lost.append(schedule.plan.graph.describe(amendment.unit.node))
    return lost


class _Hooks:
    """One amendment on one run."""

    def __init__(
        self,
        amendment: Amendment,
        schedule: Schedule,
        record: Record,
        given: list[Any],
        check: bool,
        watch: Watch | None,
    ) -> None:
        self.amendment, self.plan, self.given, self.check, self.watch = amendment, schedule.plan, given, check, watch
        self.numbers, self.known = schedule.live.value, schedule.live.numbers
        kept, remade = record.kept, record.remade
        self.values: dict[int, Any] = {n: x for n in amendment.needs if (x := remade.get(n, kept[n])) is not None}
        self.halved = {n for n in record.halved if n in self.values} if record.halved else set()
        if self.halved and any(schedule.factors_alone.get(n) != record.halved[n] for n in self.halved):
            self.values.clear()
        self.templates = {node: record.templates.get(step) for node, step in amendment.steps}
        self.cast = record.casts.get(amendment.steps[-1][1]) if amendment.steps else None
        self.complete = len(self.values) == len(amendment.needs) and None not in self.templates.values()
        self.answers: dict[int, Tensor | None] = {}
        halves = amendment.exits[0] in schedule.around[1] and amendment.exits[0] in schedule.factors_alone
        self.unshared = schedule.unshared if halves else None

    def install(self, record: Record, edges: list[Any]) -> bool:
        """Whether the hooks could be put; without the values they look at they cannot."""
        if not self.complete:
            return False
        amendment = self.amendment
        for factor in amendment.factors.values():
            if is_compressed(self.values[factor.measure]):
                what = self.plan.graph.describe(amendment.unit.node)
                raise RuleError(
                    f"{what} gives a sparse tensor of compressed rows: no epsilon rule; use .to_dense() before"
                )
        alone = not amendment.computed and len(edges) == 1 and amendment.factors
        if alone:
            edges[0][0].register_prehook(self._factor(edges[0][1], amendment.factors[0]))
            if not amendment.reaches_inside:
                return True
        nodes: dict[Any, list[tuple[int, int]]] = {}
        for place, edge in enumerate(edges):
            if edge is not None:
                nodes.setdefault(edge[0], []).append((place, edge[1]))
        if not alone and (amendment.factors or amendment.computed):
            for node, places in nodes.items():
                node.register_prehook(self._arrival(places, len(edges)))
        if amendment.reaches_inside:
            inputs: dict[tuple[Any, int], int] = {}
            for i, number in enumerate(amendment.inputs):
                for edge in record.places(number):
                    inputs.setdefault(edge, i)
            answered: set[int] = set()  # inputs that have a slot for their answer; what else goes to them is zero
            found, passed = slots_of(nodes, inputs, record, amendment.inside, self.known)
            for node in passed if amendment.computed else ():
                wake(node)
            for node, slots in found.items():
                marked = []
                for slot, i in slots:
                    marked.append((slot, i, i not in answered))
                    answered.add(i)
                node.register_hook(self._departure(marked))
        return True

    def _factor(self, slot: int, factor: Factor) -> Any:
        """Before autograd goes on: the epsilon factor, where there is nothing else to do at the one output."""

        def before(signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if signals[slot] is None or must_be_true(bool(self.values), self.watch):
                return None
            unshared = None if factor.measure in self.halved else self.unshared
            if unshared is not None and is_alone(self.values[factor.measure]):
                unshared.add(factor.measure)  # the user keeps no output until here: next time half of it is enough
            over = owned(signals, slot)  # before anything here refers to the signal
            s = self._settled(signals[slot], factor, over)
            if not self.amendment.plain:
                self._let_go()
            return (s,) if len(signals) == 1 else replaced(signals, {slot: s})

        return before

    def _arrival(self, places: list[tuple[int, int]], count: int) -> Any:
        """Before autograd goes on: the epsilon factor; or the rule's own answers, worked out and put aside."""
        amendment = self.amendment

        def before(signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if must_be_true(bool(self.values), self.watch):
                return None
            found = dict.fromkeys(range(count))
            new: dict[int, Tensor] = {}
            for place, slot in places:
                s = signals[slot]
                if s is not None and place in amendment.factors:
                    s = new[slot] = self._settled(s, amendment.factors[place])
                found[place] = s
            if amendment.computed and any(s is not None for s in found.values()):
                self._compute([found[i] for i in range(count)])
            if amendment.computed or not amendment.plain:
                self._let_go()
            return replaced(signals, new) if new else None

        return before

    def _settled(self, s: Tensor, factor: Factor, over: bool = False) -> Tensor:
        value = self._value(factor.measure)
        if value.layout is not torch.strided:  # a sparse total keeps its signal whole: epsilon is for each entry
            return s
        if factor.restated:
            return s * stabilize(value, factor.restated) / stabilize(value, factor.epsilon)
        zeroed_by = self.amendment.unit.zeroed_by
        if factor.mixed:
            plain = guarded(value, factor.epsilon)
            return s * self._one_if_zeroed(plain / stabilize(plain, factor.epsilon), zeroed_by).to(s.dtype)
        for node in zeroed_by:
            value = torch.where(self.values[self.numbers[node]].any(), value, torch.inf)
        if factor.measure in self.halved:
            return halved_factor(s, value, over)
        return epsilon_factor(s, value, factor.epsilon, factor.positive, over)

    def _value(self, number: int) -> Tensor:
        return x.take() if isinstance(x := self.values[number], Remade) else x  # type: ignore[no-any-return]

    def _compute(self, signals: list[Any]) -> None:
        amendment = self.amendment
        unit = amendment.unit
        values = {n: self._value(n) for n in self.values}
        call = LiveCall(unit, values, self.numbers, self.templates)  # type: ignore[arg-type]
        outputs = [values.get(n) for n in amendment.exits]
        single = len(outputs) == 1 and not isinstance(unit.node.meta["val"], list)
        call.output = outputs[0] if single else outputs
        call.given = [s for s in self.given if s is not None]
        call.form = amendment.form
        assert unit.handler is not None
        with self._cast_as_before():
            found = unit.handler(call, signals[0] if single else signals, *call.args, **call.kwargs)
        answers = as_signals(found, unit, self.plan.graph.describe)
        self.answers = {}
        for i, (x, answer) in enumerate(zip(call.inputs, answers)):
            if answer is None or not unit.wanted[i]:
                continue
            answer = self._fitted(answer, x, i)
            if i in amendment.plain:
                answer = self._as_plain(answer, x, i)
            first = next(j for j, n in enumerate(unit.inputs) if n is unit.inputs[i])
            before = self.answers.get(first)
            self.answers[first] = answer.to(x.dtype) if before is None else before + answer.to(x.dtype)

    def _cast_as_before(self) -> Any:
        """The autocast that the unit's operations ran under, or none."""
        if self.cast is None and not torch._C._is_any_autocast_enabled():
            return contextlib.nullcontext()
        device, dtype = self.cast or (next(iter(self.values.values())).device.type, None)
        return torch.autocast(device, dtype, enabled=self.cast is not None, cache_enabled=False)

    def _fitted(self, answer: Tensor, x: Tensor, i: int) -> Tensor:
        if answer.shape == x.shape:
            return answer
        try:
            return answer.sum_to_size(x.shape)
        except RuntimeError:
            raise RuleError(
                f"the rule of {self.plan.graph.describe(self.amendment.unit.node)} answered a signal of shape "
                f"{list(answer.shape)} for tensor argument {i} of shape {list(x.shape)}"
            ) from None

    def _departure(self, slots: list[tuple[int, int, bool]]) -> Any:
        """Before what autograd has worked out goes to the inputs: what they get in its place."""
        amendment = self.amendment

        def after(signals: tuple[Any, ...], _: Any) -> tuple[Any, ...] | None:
            if is_differentiated():
                return None
            new: dict[int, Tensor] = {}
            for slot, i, first in slots:
                s = signals[slot]
                if amendment.computed:
                    answer = self.answers.get(i) if first else None
                    if s is None:
                        if answer is not None and goes_on(slot):
                            raise RuleError(
                                f"{self.plan.graph.describe(amendment.unit.node)} hands no gradient to its argument {i}, so "
                                "the signal of its rule has no way to it; please report this operation."
                            )
                        continue
                    new[slot] = nothing(s) if answer is None else answer
                elif s is not None:
                    share = 1.0 if amendment.shares is None else amendment.shares[i] or 0.0
                    if share != 1.0:
                        s = new[slot] = s * share if share else nothing(s)
                    if i in amendment.plain:
                        x = self._value(self.numbers[amendment.unit.inputs[i]])
                        new[slot] = self._as_plain(s, x, i)
            if self.check and not all(bool(torch.isfinite(s).all()) for s in new.values()):
                raise NonFiniteError(
                    f"{self.plan.graph.describe(amendment.unit.node)} hands on a signal that is NaN or infinite"
                )
            return replaced(signals, new)

        return after

    def _as_plain(self, s: Tensor, x: Tensor, i: int) -> Tensor:
        epsilon, zeroed_by = self.amendment.plain[i]
        return s * self._one_if_zeroed(stabilize(x, epsilon) / guarded(x, epsilon), zeroed_by).to(s.dtype)

    def _one_if_zeroed(self, factor: Tensor, zeroed_by: tuple[fx.Node, ...]) -> Tensor:
        """The factor of a value; 1 as long as the value is zero only because one of these weights is wholly zero."""
        for node in zeroed_by:
            factor = torch.where(self.values[self.numbers[node]].any(), factor, 1.0)
        return factor

    def _let_go(self) -> None:
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            self.values = {}
