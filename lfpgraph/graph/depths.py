"""Where an operation stands among a model's layers, counted from the input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..errors import CompositeError
from ..registry import CONTRACTION
from .graph import ACTIVE, OpGraph, is_float

__all__ = ["Depths", "Place", "is_layer", "layer_places"]


@dataclass(frozen=True)
class Place:
    """`depth` layers lie before it, of `count` on the longest way through the model."""

    depth: int
    count: int


@dataclass(frozen=True)
class Depths:
    """A range of depths, as places of a model.

    Attributes:
        start, stop: layers counted from the input as in a slice, from 0 and without `stop`; negative ones count from the
            output, None leaves that end open.
    """

    start: int | None
    stop: int | None

    def __post_init__(self) -> None:
        for end in (self.start, self.stop):
            if end is not None and (isinstance(end, bool) or not isinstance(end, int)):
                raise CompositeError(
                    f"a depth is a whole number of layers, counted from the input, or None; not {end!r}"
                )
        if self.is_empty:
            raise CompositeError(
                f"no depth is from {self.start} on and below {self.stop}, so no layer would get these rules"
            )

    @property
    def is_empty(self) -> bool:
        """Whether no depth can lie in the range, however many layers a model has."""
        if self.start is None or self.stop is None:
            return self.stop == 0
        return (self.start < 0) == (self.stop < 0) and self.start >= self.stop

    def matches(self, place: Place | None) -> bool:
        """Whether a node's place lies in the range."""
        if place is None:
            return False
        return place.depth in range(*slice(self.start, self.stop).indices(place.count))


def is_layer(graph: OpGraph, node: fx.Node) -> bool:
    """Whether a node is a product of one activation with weights (or with other constants)."""
    info = graph.info[node]
    if info.family is not CONTRACTION or info.kind != ACTIVE:
        return False
    tensors = [n for n in node.all_input_nodes if is_float(n.meta.get("val"))]
    return len(tensors) > 1 and sum(graph.info[n].kind == ACTIVE for n in tensors) == 1


def layer_places(graph: OpGraph) -> dict[fx.Node, Place]:
    """The place of every node that depends on the model's input; what is no layer counts with the layer before it."""
    depth: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        if graph.info[node].kind == ACTIVE:
            before = max((depth[n] for n in node.all_input_nodes if n in depth), default=-1)
            depth[node] = before + is_layer(graph, node)
    count = max(depth.values(), default=-1) + 1
    return {node: Place(max(d, 0), max(count, 1)) for node, d in depth.items()}
