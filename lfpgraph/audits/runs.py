"""Both runs of a model that `patching` compares: signals at sites and along edges, and runs with a part replaced."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..composites.composite import Composite
from ..engine.call import Call, execute
from ..engine.options import Options
from ..engine.plan import Plan, make_plan
from ..engine.propagate import run_backward, run_forward
from ..engine.units import Unit
from ..errors import AttributionError
from ..explain.explainer import values_at
from ..explain.lookups import Lookup, Point, cut_lookups
from ..explain.references import add_references
from ..explain.targets import target_signals, value_of
from ..graph.calls import arguments_of
from ..graph.graph import DETACH, is_float, maker_of, module_path
from ..registry import CAST, RANDOM, SPLIT, VIEW
from ..tracing.tracer import trace
from ..wrapping.model_call import ModelCall
from .sites import Site, sites_of

__all__ = ["OUTPUT", "Runs"]

_PASSES = (SPLIT, VIEW, CAST, RANDOM)
OUTPUT = "output"


class Runs:
    """Both runs of a model, and what is asked of them."""

    def __init__(
        self,
        model: nn.Module,
        clean: Any,
        corrupt: Any,
        composite: Composite,
        sites: Any,
        modules: list[str],
        options: Options,
    ) -> None:
        (args, kwargs), (args0, kwargs0) = (
            arguments_of(inputs, AttributionError, what) for inputs, what in ((clean, "clean"), (corrupt, "corrupt"))
        )
        call, other = ModelCall(model, args, kwargs), ModelCall(model, args0, kwargs0)
        graph = trace(model, args, kwargs, dynamic=False, fallback=options.fallback)
        self.lookups = cut_lookups(graph)
        point = _point(call, other, self.lookups)
        add_references(graph)
        self.graph, self.count = graph, len(call.tensors[0])
        self.sites: list[Site] = [] if sites == "edges" else sites_of(graph, sites, modules, self.count)
        wanted = {site.node for site in self.sites} or {n for n in graph.placeholder_nodes if n in graph.references}
        self.plan: Plan = make_plan(graph, composite, wanted, options.on_missing)
        self.inside = {node for unit in self.plan.units if unit.is_region for node in unit.nodes}
        values, _ = values_at(graph, self.lookups, call, point)
        _, self.calls, self.env = run_forward(self.plan, values)
        self.other: Mapping[fx.Node, Any] = {n: self.env[graph.references.get(n, n)] for n in self.env}

    def of(self, node: fx.Node) -> tuple[Any, Any]:
        """What a node holds in the clean run and in the corrupt one."""
        return self.env[node], self.other[node]

    def name(self, node: fx.Node) -> str:
        """The module that a node belongs to; of an embedding the one that looks it up, of an input its name."""
        cut = next((lookup.node for lookup in self.lookups if lookup.cut is node), node)
        return module_path(maker_of(cut)) or cut.name

    def outputs(self, values: Mapping[fx.Node, Any]) -> list[Any]:
        """The model's tensor outputs."""
        return [values[n] if isinstance(n, fx.Node) else n for n in self.graph.user_output_nodes]

    def measure(self, metric: Any, outputs: Sequence[Any]) -> Tensor:
        """The metric of these outputs, [n] or [1], in float64."""
        if callable(metric) and not isinstance(metric, Tensor):
            made = value_of(metric, self.graph.rebuild(outputs), "the metric")
            if not isinstance(made, Tensor) or made.is_complex():
                kind = f"a tensor of {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
                raise AttributionError(f"the metric must return a tensor of numbers, one for each sample, not {kind}")
            found = made.double()
        else:
            own = self.outputs(self.env)
            weights = target_signals(metric, own, self.graph.rebuild)
            found = sum(
                (w * o).double().flatten(1).sum(1) if o.dim() > 1 else (w * o).double()
                for w, o in zip(weights, outputs)
                if w is not None
            )
        return found.flatten() if found.numel() == self.count else found.sum().reshape(1)

    def _starts(self, metric: Any) -> dict[fx.Node, Tensor]:
        starts: dict[fx.Node, Tensor] = {}
        outputs = self.outputs(self.env)
        for node, s in zip(self.graph.user_output_nodes, target_signals(metric, outputs, self.graph.rebuild)):
            if s is not None and isinstance(node, fx.Node):
                starts[node] = starts[node] + s if node in starts else s
        return starts

    def signals(self, metric: Any) -> dict[fx.Node, Any]:
        """The signal at each site."""
        record: dict[fx.Node, Any] = dict.fromkeys(site.node for site in self.sites)
        run_backward(
            self.plan, self.calls, self.env, self._starts(metric), record=record, read=lambda found, _: found.total()
        )
        return record

    def rerun(self, changed: Mapping[fx.Node, Any], metric: Any) -> Tensor:
        """The metric where these nodes have other values than in the clean run."""
        values: dict[fx.Node, Any] = dict(changed)
        for unit in self.plan.units:
            if unit.node not in values and any(n in values for n in _reads(unit)):
                values[unit.node] = self._run(unit, values)
        return self.measure(metric, self.outputs({**self.env, **values}))

    def _run(self, unit: Unit, values: Mapping[fx.Node, Any]) -> Any:
        if unit.is_region:
            raise AssertionError("the gradient's plan has no regions")
        args, kwargs = fx.node.map_arg(
            (unit.node.args, unit.node.kwargs), lambda n: values[n] if n in values else self.env[n]
        )
        return unit.node.target(*args, **kwargs)  # type: ignore[operator]

    def _passes(self, node: fx.Node) -> bool:
        """Whether a node hands on what others have written, as sums and views do; not where it gives back samples [n, ...]."""
        if node.op != "call_function" or node in self.inside or self._starts_samples(node):
            return False
        return self.graph.info[maker_of(node)].family in _PASSES

    def _starts_samples(self, node: fx.Node) -> bool:
        """Whether a node has samples as its first dimension and is a view of what has not (rows of all samples together)."""
        moving = [n for n in maker_of(node).all_input_nodes if n in self.graph.references]
        return self._has_samples(node) and not all(map(self._has_samples, moving))

    def _has_samples(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return not isinstance(value, Tensor) or (value.dim() > 0 and len(value) == self.count)

    def _writes(self, node: fx.Node) -> bool:
        writes = node in self.graph.references and is_float(node.meta.get("val")) and self._has_samples(node)
        return writes and not self._passes(node) and node.target not in DETACH

    def edges(self, metric: Any) -> dict[Any, Tensor]:
        """The estimated effect of each edge."""
        messages: list[tuple[fx.Node, str, Tensor]] = []

        def observe(unit: Unit, call: Call, s: Any, answers: Sequence[Any]) -> None:
            if not self._passes(unit.node):
                reader = self.name(unit.node)
                messages.extend(
                    (n, reader, g) for n, g, w in zip(unit.inputs, answers, unit.wanted) if g is not None and w
                )

        starts = self._starts(metric)
        run_backward(self.plan, self.calls, self.env, starts, observe=observe)
        messages += [(node, OUTPUT, s) for node, s in starts.items()]
        by_node = {call.unit.node: call for call in self.calls}
        found: defaultdict[Any, Any] = defaultdict(float)
        whole = Site("", maker_of(next(iter(starts))), "nodes")
        size = len(self.measure(metric, self.outputs(self.env)))
        for node, reader, g in messages:
            for writer, signal in self._written(node, g.sum_to_size(self.env[node].shape), by_node):
                if self.name(writer) != reader:
                    found[self.name(writer), reader] += whole.effect(*self.of(writer), signal, size)
        return dict(found)

    def _written(self, node: fx.Node, s: Tensor, calls: Mapping[fx.Node, Call]) -> Iterator[tuple[fx.Node, Tensor]]:
        """The nodes that a signal comes to through sums and views, each with what arrives there."""
        if not self._passes(node):
            if self._writes(node):
                yield node, s
            return
        unit = calls[maker_of(node)].unit
        leaves = [
            self.env[n].detach().requires_grad_()
            if n in self.graph.references and is_float(self.env[n])
            else self.env[n]
            for n in unit.inputs
        ]
        with torch.enable_grad():
            z = execute(unit, self.env, leaves)
            z = z[node.args[1]] if node.target is operator.getitem else z
        moving = [i for i, leaf in enumerate(leaves) if is_float(leaf) and leaf.requires_grad]
        if not moving:
            return
        for i, g in zip(moving, torch.autograd.grad(z, [leaves[i] for i in moving], s, allow_unused=True)):
            if g is not None:
                yield from self._written(unit.inputs[i], g, calls)

    def exact_edges(self, metric: Any, before: Tensor) -> dict[Any, Tensor]:
        """The effect of each edge by running what comes after it: the reader alone sees what was written on the corrupt input."""
        found: dict[Any, Tensor] = {}
        units = self.plan.units
        writers: defaultdict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph.graph.nodes:
            if self._writes(node):
                writers[self.name(node)].append(node)
        ends = self._starts(metric)
        for writer, nodes in writers.items():
            seen: dict[fx.Node, Any] = {n: self.other[n] for n in nodes}
            for unit in units:
                if self._passes(unit.node) and any(n in seen for n in _reads(unit)):
                    seen[unit.node] = self._run(unit, seen)
            readers = dict.fromkeys(
                self.name(u.node) for u in units if not self._passes(u.node) and any(n in seen for n in _reads(u))
            )
            for reader in readers:
                if reader == writer:
                    continue
                changed: dict[fx.Node, Any] = {}
                for unit in units:
                    own = self.name(unit.node) == reader and not self._passes(unit.node)
                    if own and any(n in seen or n in changed for n in _reads(unit)):
                        changed[unit.node] = self._run(unit, {**seen, **changed})
                found[writer, reader] = self.rerun(changed, metric) - before
            if any(n in seen for n in ends):
                found[writer, OUTPUT] = self.measure(metric, self.outputs({**self.env, **seen})) - before
        return found


def _reads(unit: Unit) -> list[fx.Node]:
    return [n for node in unit.nodes for n in node.all_input_nodes]


def _point(call: ModelCall, other: ModelCall, lookups: Sequence[Lookup]) -> Point:
    """The corrupt input as a reference point of the clean one.

    Raises:
        AttributionError: they do not fit each other.
    """
    if call.spec != other.spec:
        raise AttributionError("clean and corrupt must be given in the same way, with the same names")
    ids = {lookup.ids for lookup in lookups}
    references, starts, place = {}, [], -1
    for leaf, start in zip(call.leaves, other.leaves):
        if not isinstance(leaf, Tensor) or not isinstance(start, Tensor):
            if leaf is not start and leaf != start:
                raise AttributionError(
                    f"clean and corrupt differ in an argument that is no tensor: {leaf!r} and {start!r}"
                )
            continue
        place += 1
        if leaf.shape != start.shape or leaf.dtype != start.dtype:
            raise AttributionError(
                f"clean and corrupt must have the same shapes: {leaf.dtype} {list(leaf.shape)} and {start.dtype} "
                f"{list(start.shape)}"
            )
        if leaf.is_floating_point():
            starts.append(start.detach())
        elif place in ids:
            references[place] = start
        elif not torch.equal(leaf, start):
            raise AttributionError(
                f"clean and corrupt differ in a tensor of {leaf.dtype} that is looked up in no embedding; only float inputs "
                "and token ids may differ"
            )
    return Point(1.0, references, starts)
