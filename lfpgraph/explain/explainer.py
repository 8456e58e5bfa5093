"""A model's explanation made static: graph, plan and program, traced once and kept."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite, get_composite
from ..engine.plan import make_plan
from ..engine.program import make_program
from ..errors import AttributionError, InputError
from ..graph.calls import flatten_input
from ..graph.graph import OpGraph, is_float
from ..graph.sizes import Sizes
from ..tracing.verify import refusal
from ..wrapping.forward import FeedbackForward, no_autocast, survey
from ..wrapping.programs import Entry, key_of
from .batch_norms import merge_norms
from .lookups import Lookup, Point, cut_lookups
from .readings import Reading, lookups_of, named
from .target import refuse_nan, target_signals

__all__ = ["Explainer", "Found", "explainer_of"]

_MOST = 8  # kept for each model
_SHARE = 1.0  # cheap operations are computed again rather than kept (see `passes.recompute`)


@dataclass
class Found:
    """Relevance by what it belongs to.

    Attributes:
        inputs: by position among the call's tensors; of token ids [n, length], else of the input's shape.
        nodes: by the names asked for; parameters: by name, of the parameter's shape.
        outputs: the model's tensor outputs; signals: what each was given.
        ways: where signals are wanted, the position of the token ids of each embedding, and the way to it [n, length, features],
            by the position that the embedding's signals have among inputs.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    nodes: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    signals: list[Any] = field(default_factory=list)
    ways: dict[int, tuple[int, Tensor]] = field(default_factory=dict)


class _Kept(Entry):
    """A program, the sizes it is right for, what its rewards stand for, and the embeddings that are inputs."""

    def __init__(self, graph: OpGraph, readings: list[Reading], lookups: list[Lookup]) -> None:
        super().__init__(graph)
        self.readings = readings
        self.lookups = lookups

    def values_at(
        self, tensors: Sequence[Tensor], state: Mapping[str, Tensor], point: Point
    ) -> tuple[list[Any], dict[int, tuple[int, Tensor]]]:
        """The placeholders' values at a point of a path, and each embedding's ids and way, by its place among the tensors."""
        values = self.graph.values([*tensors, *(torch.empty(0) for _ in self.lookups)], state)
        ways = {}
        for i, lookup in enumerate(self.lookups):
            values[len(values) - len(self.lookups) + i], way = lookup.way(self.graph, values, point)
            ways[len(tensors) + i] = lookup.ids, way
        return values, ways


class Explainer(FeedbackForward):
    """Programs of one model under one composite, by structure of the call; the model is held weakly.

    Options are those of `wrap`, and "signals": give the signals of float inputs and of token ids' embeddings (for the composite
    "gradient-x-input" their gradients) instead of relevance.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        record: Sequence[str],
        parameters: bool,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(
            model, composite, {"compile": False, "share": _SHARE, "check": False, "signals": False, **options}
        )
        self.graphs: _Graphs = {}
        self.record = tuple(record)
        self.parameters = parameters

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        found = self._model()
        assert found is not None
        return found

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def explain(self, args: Sequence[Any], kwargs: Mapping[str, Any], target: Any, point: Point | None = None) -> Found:
        """Relevance of one call; nothing of the model is changed. `point`: where the embeddings are, if signals are wanted.

        Raises:
            AttributionError: the target does not fit, or a recorded name does not exist.
            InputError: the model does not run on the inputs. NonFiniteError: what is explained is NaN or infinite.
        """
        with torch.no_grad(), torch.inference_mode(False):
            leaves, spec = flatten_input(args, kwargs)
            tensors = [_plain(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
            position = iter(tensors)
            leaves = [next(position) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            state, modes = survey(self.model)
            entry = self._program(args, kwargs, leaves, spec, tensors, state, modes)
            assert isinstance(entry, _Kept)
            try:
                return self._explained(entry, tensors, state, target, point or Point())
            except (IndexError, RuntimeError):  # a token outside the embedding, say
                refused = refusal(self.model, args, kwargs)
                if refused is None:
                    raise
                raise refused from refused.__cause__

    def _explained(
        self, entry: _Kept, tensors: Sequence[Tensor], state: Mapping[str, Tensor], target: Any, point: Point
    ) -> Found:
        graph, program = entry.graph, entry.program
        assert program is not None
        with no_autocast():
            values, ways = entry.values_at(tensors, {k: _plain(v) for k, v in state.items()}, point)
            results = program.call_forward(*values)
            outputs, saved = results[: program.n_outputs], list(results[program.n_outputs :])
            del results, values
            users = list(graph.user_outputs(outputs))
            first = len(outputs) - len(users)
            signals = target_signals(target, users, graph.rebuild)
            refuse_nan(users, signals, tensors)
            given = [signals[i - first] for i in program.signal_outputs]
            missing = [s is None for s in given]
            if all(missing):
                raise AttributionError(
                    "what target= names does not depend on the model's inputs in a way that rules follow: the model "
                    "computes it under no_grad, of detached tensors or of integers"
                )
            saved += [torch.zeros_like(outputs[i]) if s is None else s for i, s in zip(program.signal_outputs, given)]
            found = program.call_feedback(saved)
        return self._sorted(entry.readings, found, Found(outputs=users, signals=signals, ways=ways))

    def _sorted(self, readings: Sequence[Reading], rewards: Sequence[Any], found: Found) -> Found:
        for reading, reward in zip(readings, rewards):
            if reward is None:
                continue
            if reading.kind == "parameter":
                found.parameters[reading.name] = _sum(found.parameters.get(reading.name), reward)
            elif reading.kind == "node":
                found.nodes[reading.name] = reward
            else:
                value = reward.sum(-1) if reading.kind == "tokens" else reward
                found.inputs[reading.name] = _sum(found.inputs.get(reading.name), value)
        return found

    def _make(self, args: Any, kwargs: Any, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> Entry:
        """Plan a graph that another composite has had traced, or trace."""
        leaves, spec = flatten_input(args, kwargs)
        key = (key_of(survey(self.model)[1], leaves, spec, state), self.composite.merge_norms, self.options["signals"])
        for graph, lookups in self.graphs.get(key, []):
            if Sizes(graph).accepts(tensors):
                return self._prepare(graph, tensors, state, lookups)
        entry = super()._make(args, kwargs, tensors, state)
        if entry.graph.tracer == "export":
            assert isinstance(entry, _Kept)
            self.graphs.setdefault(key, []).append((entry.graph, entry.lookups))
        return entry

    def _prepare(
        self,
        graph: OpGraph,
        tensors: Sequence[Tensor],
        state: Mapping[str, Tensor],
        lookups: list[Lookup] | None = None,
    ) -> Entry:
        if lookups is None:
            lookups = cut_lookups(graph) if self.options["signals"] else []
        readings = self.readings_of(graph)
        plan = make_plan(graph, self.composite, {r.node for r in readings}, self.options["on_missing"])
        entry = _Kept(graph, readings, lookups)
        nodes = None if self.options["signals"] else [reading.node for reading in readings]
        with no_autocast():
            entry.program = make_program(
                plan, entry.values_at(tensors, state, Point())[0], self.options["compile"], self.options["share"], nodes
            )
        entry.sizes.watch()
        return entry

    def readings_of(self, graph: OpGraph) -> list[Reading]:
        """What is to be read off a graph's walk; batch norms are merged first where the composite says so.

        Raises:
            InputError: nothing can have relevance. AttributionError: a recorded name does not exist.
        """
        if self.composite.merge_norms:
            merge_norms(graph)
        readings: list[Reading] = []
        for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
            if placeholder.kind == "input" and is_float(node.meta.get("val")):
                readings.append(Reading(node, "input", placeholder.target))
            elif placeholder.kind == "input":
                readings += [Reading(n, "tokens", placeholder.target) for n in lookups_of(node)]
            elif placeholder.kind == "parameter" and self.parameters:
                readings.append(Reading(node, "parameter", placeholder.target))
        if not readings and not self.record:
            raise InputError(
                f"{type(self.model).__name__} has no float input, and its integer inputs are looked up in no embedding, so "
                "there is nothing to give relevance to; pass float inputs (inputs_embeds), or record= a module"
            )
        if self.options["signals"]:
            return [reading for reading in readings if reading.kind == "input"]
        return readings + [Reading(node, "node", name) for name in self.record for node in [named(graph, name)]]


def explainer_of(
    model: nn.Module, composite: str | Composite, record: Sequence[str], parameters: bool, options: Mapping[str, Any]
) -> Explainer:
    """The model's explainer for these rules, made when first asked for."""
    known = {"on_missing": ("derive", "error"), "fallback": ("error", "retrace")}
    for option, choices in known.items():
        if options.get(option, choices[0]) not in choices:
            raise AttributionError(f"{option}={options[option]!r} is not known; choose one of {', '.join(choices)}")
    if not all(isinstance(name, str) for name in record):
        raise AttributionError(f"record={list(record)!r} must be names of modules or nodes")
    kept, graphs = _EXPLAINERS.setdefault(model, (OrderedDict(), {}))
    key = (composite if isinstance(composite, str) else id(composite), tuple(record), parameters, *options.items())
    if key not in kept:
        kept[key] = Explainer(model, get_composite(composite), record, parameters, options)
        kept[key].graphs = graphs
        while len(kept) > _MOST:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


# What has been traced once serves all composites; by kind of call.
_Graphs = dict[Any, list[tuple[OpGraph, list[Lookup]]]]
_Kind = tuple[OrderedDict[Any, Explainer], _Graphs]
_EXPLAINERS: weakref.WeakKeyDictionary[nn.Module, _Kind] = weakref.WeakKeyDictionary()


def _plain(tensor: Tensor) -> Tensor:
    """Without gradient, and an ordinary tensor where it was made under inference_mode."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _sum(before: Tensor | None, value: Tensor) -> Tensor:
    return value if before is None else before + value
