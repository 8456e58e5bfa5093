"""From a plan to amendments: what is to be done to the signals that autograd hands back.

Autograd hands back true vector-Jacobian products. A unit of the plan is amended where its rule is something else:

- `Factor`: the signal at its output is multiplied by the epsilon factor before autograd goes on;
- `Shares`: what autograd gives an input is multiplied by a number (a product's share), or by nothing at all;
- `Computed`: the rule works out the signals of the inputs, and they take the place of autograd's.

Which of the three a rule is, is found by asking it once on tensors without data: a rule that answers with multiples of
the derivative is a share. The same run tells whether it answers in stabilized form.

Note [Sums of two forms]: signals in stabilized form (Note [Two forms of a signal]) and plain ones meet at some values.
Autograd adds what arrives, so there the stabilized ones are handed on as plain ones, `s * stabilize(x) / guarded(x)`,
where `guarded` keeps x away from zero by far less than epsilon; the epsilon factor of that value then turns the sum
into stabilized form: plain signals take the factor they would have taken alone, and the others are what they were.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from ..engine.plan import How, Plan
from ..engine.units import Unit
from ..rules.activations import activation
from .call import Multiple, answers_of, answers_of_vjp, likeness_of, ways_back
from .graph_of_record import LiveGraph
from .operations import OWN_VIEW
from .repeats.factors import Factor

__all__ = ["Amendment", "Schedule", "make_schedule"]


@dataclass
class Amendment:
    """What is done to the signals of one unit.

    Attributes:
        unit: the unit.
        exits: the numbers of its outputs (-1 where there is none).
        factors: on its outputs, by place.
        shared: whether autograd's node of it hands on what comes to other views of its source, too.
        form: the epsilon of the signal once it has arrived, where it is in stabilized form.
        shares: for each input, the multiple of autograd's signal it gets; None where the rule computes the signals.
        computed: whether the rule computes the signals.
        plain: inputs at which stabilized answers must be handed on as plain ones, with their epsilon and `zeroed_by`.
        needs: the numbers of the values it looks at; steps: of the operations whose arguments it needs.
        inputs: the numbers of the unit's inputs (-1 where there is none); inside: of what it computes on the way.
    """

    unit: Unit
    exits: tuple[int, ...]
    factors: dict[int, Factor] = field(default_factory=dict)
    shared: bool = False
    form: float | None = None
    shares: tuple[float | None, ...] | None = None
    computed: bool = False
    plain: dict[int, tuple[float, tuple[fx.Node, ...]]] = field(default_factory=dict)
    needs: tuple[int, ...] = ()
    steps: tuple[tuple[fx.Node, int], ...] = ()
    inputs: tuple[int, ...] = ()
    inside: frozenset[int] = frozenset()
    arrived: list[Any] = field(default_factory=list)  # what arrives at the one output: user, place, form

    @property
    def reaches_inside(self) -> bool:
        """Whether signals are changed where they arrive at the inputs."""
        return self.computed or bool(self.plain) or self.shares is not None

    @cached_property
    def lone(self) -> Factor | None:
        """The plain epsilon factor of the one output, where nothing else is to be done."""
        if self.reaches_inside or len(self.exits) != 1 or list(self.factors) != [0] or self.unit.zeroed_by:
            return None
        factor = self.factors[0]
        return None if factor.mixed or factor.restated or not factor.epsilon else factor


@dataclass
class Schedule:
    """A planned run.

    Attributes:
        plan, live: the plan and its graph with places in the record.
        amendments: what is to be done, in order.
        keys: the steps' keys.
        keeps: steps whose results are kept; `templates`: steps whose arguments are.
        kept_values: numbers of the values that amendments look at.
        factors_alone: of those, the ones that one epsilon factor alone looks at, with its epsilon; `unshared`: of these,
            the ones that nobody but us kept in memory after the first run.
        remade: steps whose result is made again in the backward pass where it is large, with the operation.
        spared: these, and steps that read such a result.
    """

    plan: Plan
    live: LiveGraph
    amendments: list[Amendment]
    keys: list[Any]
    notes: Any = None  # what the record noted of each step: `templates`, `paths`, `lines`
    steps: list[Any] = field(default_factory=list)  # of each step the operation, and the numbers of its results
    quick: list[Any] | None = None  # `repeats.steps.quick_steps`; None until a run is likely to repeat this one
    simple: Any = None  # of these the whole run, if it is one that `repeats.replay` can take
    around: Any = None  # what else a run must have alike: its leaves, outputs and ends
    looks_at_outputs: bool = False  # whether a rule may look at the signals at the outputs
    unread: list[int] = field(default_factory=list)  # values that nothing in the run reads
    keeps: set[int] = field(default_factory=set)
    templates: set[int] = field(default_factory=set)
    kept_values: set[int] = field(default_factory=set)
    factors_alone: dict[int, float] = field(default_factory=dict)
    unshared: set[int] = field(default_factory=set)
    remade: dict[int, Any] = field(default_factory=dict)
    spared: set[int] = field(default_factory=set)

    @cached_property
    def parameters(self) -> list[tuple[int, How]]:
        """For each parameter its place among the leaves, and how its signal becomes feedback."""
        graph = self.plan.graph
        pairs = enumerate(zip(graph.placeholder_nodes, graph.placeholders))
        return [(i, self.plan.how(node)) for i, (node, placeholder) in pairs if placeholder.kind == "parameter"]

    def repeats(self, step: int, key: Any) -> bool:
        """Whether a step is the one that this run had at its place."""
        return step < len(self.keys) and self.keys[step] == key


def make_schedule(plan: Plan, live: LiveGraph, keys: list[Any], follows: Sequence[bool], undone: set[int]) -> Schedule:
    """Work out what autograd's signals need to become the plan's. `undone`: see `values.Values`."""
    schedule = Schedule(plan, live, [], keys)
    arrivals: dict[fx.Node, list[tuple[Unit, int, float | None]]] = defaultdict(list)
    for node in plan.graph.user_output_nodes:
        if isinstance(node, fx.Node):
            arrivals[node].append((None, -1, None))  # type: ignore[arg-type]
    by_unit: dict[int, Amendment] = {}
    asked: dict[Any, Any] = {}
    times = Counter(live.value.values())
    for unit in reversed(plan.units):
        node = unit.node
        if node.target is operator.getitem:
            continue
        followed = [n in live.value and follows[live.value[n]] for n in unit.inputs]
        if not any(followed):
            continue
        amendment = Amendment(unit, _exits(live, node))
        amendment.shared = amendment.exits[0] in undone or (node.target is OWN_VIEW and len({*unit.inputs}) == 1)
        reached = _is_reached(node, arrivals)
        if not reached and (unit.handler is not None or times[amendment.exits[0]] > 1):
            continue  # nothing to amend; and a copy for the idle has its autograd nodes in common with what it is a copy of
        if unit.handler is None:
            amendment.shares = tuple(0.0 for _ in unit.inputs)  # no reward passes, so no gradient does
            schedule.amendments.append(amendment)
            continue
        _settle(amendment, arrivals, by_unit)
        found = answers_of_vjp(unit)
        if found is None:
            alike = likeness_of(unit)
            if alike is None or alike not in asked:
                asked[alike] = answers_of(unit)
            found = asked[alike]
        answers, stabilized, looks = found
        schedule.looks_at_outputs |= looks
        if answers is None or any(isinstance(a, Tensor) for a in answers):
            amendment.computed = True
        else:
            shares = tuple(a.factor if isinstance(a, Multiple) else 0.0 for a in answers)
            by_source = {n: share for n, share in zip(unit.inputs, shares)}
            if any(by_source[n] != share for n, share in zip(unit.inputs, shares)):
                amendment.computed = True  # one value at several places, with a share for each: autograd adds them up
            elif any(share != 1.0 for share, follows_it in zip(shares, followed) if follows_it):
                amendment.shares = shares
        form = amendment.form
        if stabilized is not False:
            form = unit.option_epsilon if stabilized is True else stabilized
        elif not (unit.family.passes_form or unit.ends_layer):
            form = None
        reaches = ways_back(unit, arrivals)
        for i, source in enumerate(unit.inputs):
            if unit.wanted[i] and reaches[i] and (answers is None or answers[i] is not None):
                arrivals[source].append((unit, i, form))
        by_unit[id(unit)] = amendment
        schedule.amendments.append(amendment)
    schedule.amendments = [a for a in reversed(schedule.amendments) if a.factors or a.reaches_inside]
    _needs(schedule)
    return schedule


def _is_reached(node: fx.Node, arrivals: Mapping[fx.Node, list[Any]]) -> bool:
    """Whether a signal arrives at a node, or at one of its results."""
    return bool(arrivals.get(node)) or any(arrivals.get(n) for n in node.users if n.target is operator.getitem)


def _exits(live: LiveGraph, node: fx.Node) -> tuple[int, ...]:
    if node in live.value:
        return (live.value[node],)
    items = {n.args[1]: live.value[n] for n in node.users if n.target is operator.getitem}
    return tuple(items.get(i, -1) for i in range(len(node.meta["val"])))


def _settle(amendment: Amendment, arrivals: Mapping[fx.Node, list[Any]], by_unit: dict[int, Amendment]) -> None:
    """What is to be done to the sums of what arrives at a unit's outputs (`engine.signals.Sum.settle`)."""
    unit = amendment.unit
    node = unit.node
    if not isinstance(node.meta["val"], list):
        amendment.arrived = arrivals[node]
        amendment.form = _settle_one(amendment, 0, arrivals[node], unit.epsilon, by_unit)
        return
    items = {n.args[1]: arrivals[n] for n in node.users if n.target is operator.getitem and n in arrivals}
    forms = {place: _settle_one(amendment, place, arrived, unit.epsilon, by_unit) for place, arrived in items.items()}
    if any(form for form in forms.values()):
        amendment.form = unit.option_epsilon or None
        for place, form in forms.items():
            if form is None and unit.option_epsilon:
                amendment.factors[place] = Factor(unit.option_epsilon)  # type: ignore[index]


def _settle_one(
    amendment: Amendment, place: Any, arrived: list[Any], own: float, by_unit: dict[int, Amendment]
) -> float | None:
    """Settle what arrives at one output; returns the epsilon of the sum's form."""
    forms = {form for _, _, form in arrived}
    stabilized = sorted({form for form in forms if form}, reverse=True)
    if not stabilized:
        if own:
            amendment.factors[place] = Factor(own)
        return own or None
    epsilon = own or stabilized[0]
    if None not in forms and len(stabilized) == 1:
        if stabilized[0] != epsilon:
            amendment.factors[place] = Factor(epsilon, restated=stabilized[0])
        return epsilon
    amendment.factors[place] = Factor(epsilon, mixed=True)
    _make_plain(arrived, amendment.unit.zeroed_by, by_unit)
    return epsilon


def _make_plain(arrived: list[Any], zeroed_by: tuple[fx.Node, ...], by_unit: dict[int, Amendment]) -> None:
    """Have stabilized signals handed on as plain ones.

    Autograd's node of a view may be that of another view as well, which hands on plain ones: there, what comes to the view
    is made plain.
    """
    for user, position, form in arrived:
        if not form or user is None:
            continue
        amendment = by_unit[id(user)]
        if amendment.shared:
            amendment.factors.clear()
            _make_plain(amendment.arrived, zeroed_by, by_unit)
        else:
            amendment.plain[position] = form, zeroed_by


def _needs(schedule: Schedule) -> None:
    """Which values and arguments the amendments look at, and by which steps they are kept."""
    live = schedule.live
    looks: Counter[int] = Counter()
    for amendment in schedule.amendments:
        unit = amendment.unit
        needs = {live.value[n] for n in unit.zeroed_by}
        for place, factor in amendment.factors.items():
            instead = unit.rectified if unit.rectified is not None and place == 0 and not factor.mixed else None
            factor.measure = amendment.exits[place] if instead is None else _exits(live, instead)[0]
            factor.positive = instead is not None
            needs.add(factor.measure)
        inner = [n for i, (_, zeroed_by) in amendment.plain.items() for n in (unit.inputs[i], *zeroed_by)]
        if amendment.computed:
            inner += unit.inputs
            needs.update(n for n in amendment.exits if n >= 0)
            amendment.steps = tuple((n, live.step[n]) for n in unit.nodes)
            for node in unit.nodes:
                inner += [n for n in node.all_input_nodes if n in live.value and n not in unit.nodes]
        needs.update(live.value[n] for n in inner if n in live.value)
        amendment.needs = tuple(needs)
        for number in needs:
            looks[number] += 1
        amendment.inputs = tuple(live.value.get(n, -1) for n in unit.inputs)
        amendment.inside = frozenset(live.value[n] for n in unit.nodes if n in live.value)
        schedule.kept_values.update(needs)
        schedule.templates.update(step for _, step in amendment.steps)
    step_of_value = {live.value[n]: live.step[n] for n in live.value if n in live.step}
    schedule.keeps = {step_of_value[n] for n in schedule.kept_values if n in step_of_value}
    for amendment in schedule.amendments:
        for factor in amendment.factors.values():
            if looks[factor.measure] == 1 and not (
                amendment.computed or amendment.plain or factor.mixed or factor.restated
            ):
                schedule.factors_alone[factor.measure] = factor.epsilon
        unit = amendment.unit
        if amendment.computed and not unit.is_region and unit.handler is activation and len(unit.inputs) == 1:
            if looks[amendment.exits[0]] == 1:
                step = live.step[unit.node]
                schedule.remade[step] = unit.node.target
                schedule.spared |= {step, *(live.step[user] for user in unit.node.users if user in live.step)}
