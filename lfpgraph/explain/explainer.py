"""The explainer: graph, plan and program of a model's explanations, traced once and kept."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite, get_composite
from ..composites.unmoved import log_idle
from ..engine.options import Options
from ..engine.plan import make_plan
from ..engine.program import make_program
from ..engine.static import no_autocast
from ..errors import AttributionError
from ..graph.calls import flatten_input
from ..graph.graph import OpGraph
from ..graph.sizes import Sizes
from ..passes.recompute import Share
from ..tracing.verify import refusal
from ..wrapping.model_call import ModelCall
from ..wrapping.programs import Entry, Programs
from .batch_norms import merge_norms
from .derivatives import WRITTEN_OUT, Followed
from .found import Found, sorted_rewards, stacked
from .lookups import Lookup, Point, cut_lookups
from .readings import Reading, readings_of
from .references import add_references, floats_of
from .rewrites import condition_channels, hand_positions, masks_of, shapes_of
from .targets import Targets, refuse_nan, target_signals

__all__ = ["Explainer", "explainer_of", "values_at"]

_MOST = 8  # kept for each model
_SHARE = Share(1.0, statistics=False)  # cheap operations are computed again rather than kept (see `passes.recompute`)
_Graphs = dict[Any, list[tuple[OpGraph, list[Lookup]]]]  # by kind of call; one trace serves all composites


@dataclass(eq=False)
class _Kept(Entry):
    """A program, the sizes it is right for, what its rewards stand for, and the embeddings that are inputs."""

    readings: list[Reading] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)


@dataclass(eq=False)
class Explainer:
    """What one model's explanations under one composite need, traced once and kept. The model itself is not kept alive.

    Attributes:
        record, parameters: as for `lfpgraph.attribute`.
        signals: give the signals of float inputs and of token ids' embeddings (for the composite "gradient-x-input" their
            gradients) instead of relevance.
        positions: relevance of positions is handed to their tokens.
        differentiable: autograd follows the program.
        several: there are several targets, so what all of them need is worked out ahead.
        graphs: of the model, traced for any composite.
    """

    composite: Composite
    options: Options
    record: tuple[str, ...]
    parameters: bool
    signals: bool
    positions: bool
    differentiable: bool
    several: bool
    graphs: _Graphs
    programs: Programs[_Kept] = field(default_factory=Programs)

    def explain(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        target: Any,
        point: Point | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> Found:
        """Relevance of one call; nothing of the model is changed.

        Args:
            point: where the embeddings are, if signals are wanted. condition: as for `lfpgraph.attribute`.

        Raises:
            AttributionError: the target does not fit, or a recorded name does not exist.
            InputError: the model does not run on the inputs. NonFiniteError: what is explained is NaN or infinite.
        """
        given = args, kwargs
        with torch.no_grad(), torch.inference_mode(False):
            leaves, spec = flatten_input(args, kwargs)
            leaves = [_plain(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            call = ModelCall(model, args, kwargs)
            entry = self.programs.find(call, functools.partial(self._make, condition=condition or {}))
            try:
                if self.differentiable:
                    call = ModelCall(model, *given)
                    if not call.follows:
                        raise AttributionError(
                            "differentiable=True, but neither an input nor a parameter requires a gradient; call "
                            "requires_grad_() on what relevance is to be differentiated by"
                        )
                    with torch.enable_grad():
                        return _explained(entry, call, target, point or Point(), condition or {}, True)
                return _explained(entry, call, target, point or Point(), condition or {})
            except (IndexError, RuntimeError):  # a token outside the embedding, say
                refused = refusal(model, args, kwargs)
                if refused is None:
                    raise
                raise refused from refused.__cause__

    def _make(self, call: ModelCall, condition: Mapping[str, Any]) -> _Kept:
        """Plan a graph that another composite has had traced, or trace."""
        key = (call.kind, self.composite.merge_norms, self.signals, self.composite.compares)
        kept = self.graphs.setdefault((*key, self.positions, shapes_of(condition)), [])
        for graph, lookups in kept:
            if Sizes(graph).accepts(call.tensors):
                return self._planned(graph, call, lookups)
        entry = self.programs.trace(call, self.options.fallback, functools.partial(self._prepare, condition=condition))
        if entry.graph.tracer == "export":
            kept.append((entry.graph, entry.lookups))
        return entry

    def _prepare(self, graph: OpGraph, call: ModelCall, condition: Mapping[str, Any]) -> _Kept:
        """Change a traced graph as the composite and the question ask for, and plan it."""
        lookups = cut_lookups(graph) if self.signals else []
        if self.composite.merge_norms:
            merge_norms(graph)
        if self.positions:
            hand_positions(graph)
        if condition:
            condition_channels(graph, masks_of(graph, condition))
        if self.composite.compares:
            add_references(graph)
        return self._planned(graph, call, lookups)

    def _planned(self, graph: OpGraph, call: ModelCall, lookups: list[Lookup]) -> _Kept:
        readings = readings_of(graph, self.record, self.parameters)
        if self.signals:
            readings = [reading for reading in readings if reading.kind == "input"]
        nodes = [reading.node for reading in readings]
        values, _ = values_at(graph, lookups, call, Point())
        plan = make_plan(graph, self.composite, set(nodes), self.options.on_missing, values)
        written = WRITTEN_OUT if self.differentiable else None
        rewards = None if self.signals else nodes
        share = None if self.several else _SHARE
        program = make_program(plan, values, share=share, rewards=rewards, written_out=written, once=self.several)
        return _Kept(program, readings=readings, lookups=lookups)


def values_at(
    graph: OpGraph, lookups: Sequence[Lookup], call: ModelCall, point: Point, differentiable: bool = False
) -> tuple[list[Any], dict[int, tuple[Lookup, Tensor]]]:
    """The placeholders' values at a point of a path, and each embedding's lookup and way, by its place among the tensors."""
    state = call.state if differentiable else {name: _plain(value) for name, value in call.state.items()}
    starts = [call.tensors[p.target] for p in graph.placeholders if p.kind == "input" and p.target < len(call.tensors)]
    starts = [t for t in starts if t.is_floating_point()] if point.starts is None else list(point.starts)
    made = len(lookups) + (len(starts) + len(lookups) if graph.references else 0)
    values = graph.values([*call.tensors, *(torch.empty(0) for _ in range(made))], state)
    places = {node: i for i, node in enumerate(graph.placeholder_nodes)}
    ways = {}
    for i, lookup in enumerate(lookups):
        place = places[lookup.cut]
        values[place], way = lookup.way(graph, values, point)
        starts.append(values[place] - way)
        ways[len(call.tensors) + i] = lookup, way
    if graph.references:
        for node, start in zip(floats_of(graph), starts):
            values[places[graph.references[node]]] = start
    return values, ways


@no_autocast()
def _explained(
    entry: _Kept,
    call: ModelCall,
    target: Any,
    point: Point,
    condition: Mapping[str, Any],
    differentiable: bool = False,
) -> Found:
    """Run the program for one call, and sort the rewards by what they belong to."""
    graph, program = entry.graph, entry.program
    values, ways = values_at(graph, entry.lookups, call, point, differentiable)
    masks = {f"condition {name}": mask for name, mask in masks_of(graph, condition).items()}
    values = [masks.get(p.target, v) if p.kind == "constant" else v for p, v in zip(graph.placeholders, values)]
    run_forward, run_feedback = program.call_forward, program.call_feedback
    if differentiable:
        run_forward = Followed(program.forward).run
        run_feedback = lambda given: Followed(program.feedback).run(*given)  # noqa: E731
    results = run_forward(*values)
    outputs, saved = results[: program.n_outputs], list(results[program.n_outputs :])
    del results, values
    users = list(graph.user_outputs(outputs))
    first = len(outputs) - len(users)
    several = isinstance(target, Targets)
    founds = []
    for one in target.each if several else [target]:
        signals = target_signals(one, users, graph.rebuild)
        refuse_nan(users, signals, call.tensors)
        given = [signals[i - first] for i in program.signal_outputs]
        if all(s is None for s in given):
            raise AttributionError(
                "what target= names does not depend on the model's inputs in a way that rules follow: the model "
                "computes it under no_grad, of detached tensors or of integers"
            )
        given = [torch.zeros_like(outputs[i]) if s is None else s for i, s in zip(program.signal_outputs, given)]
        found = Found(outputs=users, signals=signals, ways=ways)
        founds.append(sorted_rewards(entry.readings, run_feedback([*saved, *given]), found))
    return stacked(founds) if several else founds[0]


def explainer_of(
    model: nn.Module,
    composite: str | Composite,
    options: Options,
    record: tuple[str, ...] = (),
    parameters: bool = False,
    signals: bool = False,
    positions: bool = False,
    condition: Mapping[str, Any] | None = None,
    differentiable: bool = False,
    several: bool = False,
) -> Explainer:
    """The model's explainer for these rules and options; the `_MOST` that were asked for last are kept for each model."""
    if not all(isinstance(name, str) for name in record):
        raise AttributionError(f"record={list(record)!r} must be names of modules or nodes")
    kept, graphs = _EXPLAINERS.setdefault(model, (OrderedDict(), {}))
    key: tuple[Any, ...]
    key = (composite if isinstance(composite, str) else id(composite), options, record, parameters, signals)
    key += (positions, shapes_of(condition or {}), differentiable, several)
    if key not in kept:
        rules = get_composite(composite)
        log_idle(rules, model)
        kept[key] = Explainer(rules, options, record, parameters, signals, positions, differentiable, several, graphs)
        while len(kept) > _MOST:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


_EXPLAINERS: weakref.WeakKeyDictionary[nn.Module, tuple[OrderedDict[Any, Explainer], _Graphs]]
_EXPLAINERS = weakref.WeakKeyDictionary()


def _plain(tensor: Tensor) -> Tensor:
    """Without gradient, and an ordinary tensor where it was made under inference_mode."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
