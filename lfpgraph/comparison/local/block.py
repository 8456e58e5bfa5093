"""One block of a model's graph: which of its nodes are computed, in which order, and when their values are let go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.graph import shape_of

__all__ = ["Block", "numbers_of", "signature", "sizes_of"]

_SHARE = 4  # a block of which more is alive than so many times what it hands on gains little by making that again


class Block:
    """Some nodes of a graph, in order.

    Attributes:
        entry: the activation that the block before hands over; None for the first block.
        end: what it hands on.
        carried: further values of it that later blocks read.
        late: whether it reads such values of earlier blocks, so that it cannot run apart from them.
        parameters: names of the parameters that it reads.
        before, behind: nodes that depend on no parameter, and all others; empty unless `part` has told them apart.
    """

    def __init__(self, nodes: Sequence[fx.Node], entry: fx.Node | None, end: fx.Node) -> None:
        self.nodes, self.entry, self.end = list(nodes), entry, end
        self.carried: list[fx.Node] = []
        self.updates: list[tuple[str, fx.Node]] = []
        self.late = False
        self.parameters: list[str] = []
        self.before: list[fx.Node] = []
        self.behind: list[fx.Node] = []
        self._dead: dict[fx.Node, list[fx.Node]] = {}

    def settle(self) -> None:
        """Find out after which node each value is needed no more."""
        kept = {self.end, *self.carried, *(n for _, n in self.updates)}
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        own = {*self.nodes, *([self.entry] if self.entry is not None else [])}
        self._dead = {node: [] for node in self.nodes}
        for source, node in last.items():
            if source in own and source not in kept:
                self._dead[node].append(source)

    def part(self, trained: set[fx.Node], largest: int) -> bool:
        """Set `before` and `behind`, if what the block hands on is worth being made again.

        That is where it is large, beside all that the block makes from parameters and beside the `largest` that any block of the
        model hands on, and where nothing is drawn: then it need not be kept while the block's backward pass runs.
        """
        if any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in self.nodes):
            return False
        varying, behind = set(trained), []
        for node in self.nodes:
            if any(source in varying for source in node.all_input_nodes):
                varying.add(node)
                behind.append(node)
        made = sum(numbers_of(n) for n in behind)
        if not behind or max(made, largest) > _SHARE * numbers_of(self.end):
            return False
        self.before, self.behind = [n for n in self.nodes if n not in varying], behind
        self.nodes = [*self.before, *self.behind]
        self.settle()
        return True

    def run(
        self, values: Mapping[fx.Node, Any], given: dict[fx.Node, Any], nodes: Sequence[fx.Node] | None = None,
        over: bool = False,
    ) -> dict[fx.Node, Any]:  # fmt: skip
        """Run the block on values, of which `given` take precedence. What is needed no more is let go at once, of `given` too.

        Args:
            nodes: those that are run, all by default.
            over: whether `entry` may be written over.
        """
        local = given
        for node in self.nodes if nodes is None else nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: local[n] if n in local else values[n])
            dead = self._dead[node]
            written = _in_place(node) if over and self.entry in dead else None
            local[node] = (written or node.target)(*args, **kwargs)  # type: ignore[operator]
            del args, kwargs
            for source in dead:
                del local[source]
        return local


def signature(block: Block) -> tuple[Any, ...]:
    """What two blocks have in common that differ in their weights alone."""
    return tuple((str(n.target), shape_of(n), len(n.all_input_nodes)) for n in block.nodes)


def sizes_of(node: fx.Node) -> list[int]:
    """The sizes of a node's tensor without the first, those of the example where they are open."""
    sizes = node.meta["val"].shape[1:]
    return [int(n.node.hint) if isinstance(n, torch.SymInt) else int(n) for n in sizes]


def numbers_of(node: fx.Node) -> int:
    """How many a node makes for one row; none where it is another view of what was there."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or _is_view(node):
        return 0
    return math.prod(sizes_of(node))


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.alias_info is not None for a in schema.returns)


def _in_place(node: fx.Node) -> Any:
    """The operation that writes over its first argument in place of a new tensor alike; None if there is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return None
    first = node.args[0] if node.args else None
    if len(node.all_input_nodes) != 1 or not isinstance(first, fx.Node) or not _alike(first, node):
        return None
    name = target._schema.name.partition("::")[2]
    packet = getattr(getattr(torch.ops, target.namespace), f"{name}_", None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _alike(first: fx.Node, node: fx.Node) -> bool:
    a, b = first.meta.get("val"), node.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and shape_of(first) == shape_of(node)
