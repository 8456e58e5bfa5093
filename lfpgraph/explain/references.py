"""A second run within the graph, at a reference point, for composites that compare two runs (`Composite.compares`)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..errors import AttributionError
from ..graph.graph import CONSTANT, NodeInfo, OpGraph, Placeholder, is_float

__all__ = ["add_references", "floats_of"]

_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor)  # with numbers, their shape is known


def floats_of(graph: OpGraph) -> list[fx.Node]:
    """The float inputs of a graph, which have a reference point, in order."""
    pairs = zip(graph.placeholder_nodes, graph.placeholders)
    return [n for n, p in pairs if p.kind == "input" and is_float(n.meta.get("val"))]


def add_references(graph: OpGraph) -> None:
    """Compute all that depends on a float input a second time, from new inputs that come after all others; in place.

    Raises:
        AttributionError: the two runs would not be comparable, since the model draws random numbers or reads values off tensors.
    """
    twins: dict[fx.Node, fx.Node] = {}
    floats = floats_of(graph)
    first = sum(p.kind == "input" for p in graph.placeholders)
    for place, node in enumerate(floats, first):
        with graph.graph.inserting_after(graph.placeholder_nodes[-1]):
            twins[node] = graph.graph.placeholder(f"reference_{node.name}")
        twins[node].meta["val"] = _another(node.meta["val"])
        graph.placeholders.append(Placeholder("reference", place))
    for node in list(graph.operations()):
        if not any(source in twins for source in node.all_input_nodes):
            continue
        reason = _not_comparable(node, twins)
        if reason is not None:
            raise AttributionError(
                f"{graph.describe(node)} {reason}, so the runs at the input and at the baseline cannot be compared; or name "
                "another composite, such as attnlrp"
            )
        if isinstance(node.meta.get("val"), Tensor | list | tuple):
            with graph.graph.inserting_before(node):
                twins[node] = graph.graph.node_copy(node, lambda n: twins.get(n, n))
    for node, twin in twins.items():
        graph.info[
            node
        ].part = "network"  # what logits become is compared, too: a difference has no gradient to take there
        graph.info[twin] = NodeInfo(CONSTANT, "network", graph.info[node].family)
    graph.references = twins
    graph.module.recompile()


def _not_comparable(node: fx.Node, twins: Container[fx.Node]) -> str | None:
    """Why the two runs of an operation are not of the same shape and the same draw; None if they are."""
    if _draws(node):
        return "draws random numbers (call model.eval())"
    if node.target is torch.ops.aten._local_scalar_dense.default:
        return "reads a number off a tensor"
    if isinstance(node.target, OpOverload) and torch.Tag.dynamic_output_shape in node.target.tags:
        picks = [
            n for n in node.all_input_nodes if n in twins and getattr(n.meta.get("val"), "dtype", None) == torch.bool
        ]
        if picks or node.target not in _INDEXED:
            return "has as many results as its inputs say"
    return None


def _draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers, with the arguments it has."""
    op = node.target
    if not isinstance(op, OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    given: dict[str, Any] = {a.name: value for a, value in zip(op._schema.arguments, node.args)} | dict(node.kwargs)
    flags = [a.name for a in op._schema.arguments if a.name in ("dropout_p", "train", "training")]
    return not flags or any(
        given.get(name, 0.0 if name == "dropout_p" else False) not in (0.0, False) for name in flags
    )


def _another(value: Tensor) -> Tensor:
    """A tensor like an example, but another object, since tracing tells arguments apart by identity."""
    with torch.no_grad():
        return value.detach()
