"""Embeddings of token ids as inputs of a graph, so that a path can lead to them from a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import AttributionError
from ..graph.classes import classify
from ..graph.graph import OpGraph, Placeholder, is_float
from .readings import Slot, lookups_of, slot_of

__all__ = ["Lookup", "Point", "cut_lookups"]


@dataclass(frozen=True)
class Point:
    """A point of the straight path from a reference to the inputs, for embeddings.

    Attributes:
        portion: how far along, 1 for the inputs themselves.
        references: the token ids at the start, by position among the call's tensors. Where there are none the embedding
            starts at zero.
        starts: the reference's float inputs, in order, for rules that compare two runs.
    """

    portion: float = 1.0
    references: Mapping[int, Tensor] | None = None
    starts: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Lookup:
    """An embedding of token ids that has become an input of the graph.

    Attributes:
        ids: position of the token ids among the call's tensors; `slot`: which of them, if not all.
        source: their placeholder; `node`: the lookup, whose users read the new input, `cut`, now.
    """

    ids: int
    source: fx.Node
    node: fx.Node
    cut: fx.Node
    slot: Slot | None

    def way(self, graph: OpGraph, values: Sequence[Any], point: Point) -> tuple[Tensor, Tensor]:
        """The embedding at a point of the path, and its difference from the reference, for these values of the placeholders.

        Raises:
            AttributionError: a reference is no token.
        """
        env = dict(zip(graph.placeholder_nodes, values))
        end = self._value(dict(env), env[self.source])
        reference = (point.references or {}).get(self.ids)
        try:
            start = torch.zeros_like(end) if reference is None else self._value(dict(env), reference)
        except IndexError as error:
            raise AttributionError(f"baseline has token ids that {graph.describe(self.node)} does not know") from error
        way = end - start
        return end if point.portion == 1 else start + point.portion * way, way

    def _value(self, env: dict[fx.Node, Any], ids: Tensor) -> Any:
        """The lookup's result for other ids of the same shape."""
        env[self.source] = ids

        def run(node: fx.Node) -> Any:
            if node not in env:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), run)
                env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return env[node]

        return run(self.node)


def cut_lookups(graph: OpGraph) -> list[Lookup]:
    """Turn every embedding of an integer input into an input of its own, in place; returns them, none at a second call.

    The new inputs come after all others: their positions go on from the number of the call's tensors.
    """
    inputs = [(n, p) for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input"]
    wholes = [(n, p) for n, p in inputs if not is_float(n.meta.get("val"))]
    found: list[Lookup] = []
    for source, placeholder, node in [(n, p, e) for n, p in wholes for e in lookups_of(graph, n)]:
        with graph.graph.inserting_after(graph.placeholder_nodes[-1]):
            cut = graph.graph.placeholder(f"embedded_{node.name}")
        cut.meta["val"] = node.meta["val"]
        graph.placeholders.append(Placeholder("input", len(inputs) + len(found)))
        node.replace_all_uses_with(cut)
        found.append(Lookup(placeholder.target, source, node, cut, slot_of(node, source)))
    if found:
        graph.module.recompile()
        graph.info.clear()
        classify(graph)
    return found
