"""Where a graph can be cut in two: the operations that everything passes on its way from inputs to an output."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import networkx as nx
from torch import fx

from .graph import module_path

__all__ = ["cut_points"]


def cut_points(flow: nx.DiGraph, root: Any, output: fx.Node, inside: Container[fx.Node] = ()) -> list[fx.Node]:
    """Operations that all ways from `root` to `output` pass, from the output up: where paths join, or a block ends.

    Args:
        inside: nodes that are no place to cut, as what joins there belongs together.
    """
    flow = flow.subgraph(nx.ancestors(flow, output) | {output})
    dominators = nx.immediate_dominators(flow, root)
    chain = []
    node = output
    while isinstance(node, fx.Node) and node.op == "call_function":
        chain.append(node)
        node = dominators[node]
    joins = {node for node in chain if flow.in_degree(node) > 1 and node not in inside}
    return [a for a, b in zip(chain, [None, *chain]) if b is None or a in joins or _block(a) != _block(b)]


def _block(node: fx.Node) -> str:
    """The module path up to its first number: the block of a stack that a node is in."""
    parts = module_path(node).split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else parts[0]
