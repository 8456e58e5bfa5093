"""What each node means for reward: active, weight-like or constant; network or objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import InputError
from ..registry import NOTHING
from .graph import (
    ACTIVE,
    CONSTANT,
    DETACH,
    WEIGHT,
    NodeInfo,
    OpGraph,
    ancestors,
    family_of,
    is_float,
    is_statistic,
    takes_reward,
)
from .objective import network_ends
from .selections import selected_from

__all__ = ["classify"]


def classify(graph: OpGraph) -> OpGraph:
    """Fill `graph.info`. Requires: a functional graph. Ensures: every node has an entry.

    What is detached, or made where no gradients are recorded, is a constant; but where no float input comes in by any other
    way (the features of a frozen encoder), it is an activation like an input.
    """
    network = _network(graph)
    _fill(graph, network, detached=CONSTANT)
    may_differ = any(p.kind == "unrecorded" for p in graph.placeholders) or _detaches(graph)
    if may_differ and not _has_other_ways(graph):
        _fill(graph, network, detached=ACTIVE)
    if not any(info.kind == ACTIVE for info in graph.info.values()):
        raise InputError(
            "nothing in this model can carry reward: no float input and no parameter on the way from input to output. "
            "An integer-only model has no activations to reward."
        )
    return graph


def _fill(graph: OpGraph, network: set[fx.Node], detached: str) -> None:
    """Give every node its entry; `detached` is what a detached activation is."""
    kinds: dict[fx.Node, str] = {}
    from_input: dict[fx.Node, bool] = {}
    for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
        from_input[node] = placeholder.kind in ("input", "unrecorded")
        active = {"input": ACTIVE, "unrecorded": detached}.get(placeholder.kind, CONSTANT)
        kinds[node] = (
            WEIGHT if placeholder.kind == "parameter" else active if is_float(node.meta.get("val")) else CONSTANT
        )
    for node in graph.graph.nodes:
        family = family_of(node)
        if node.op != "placeholder":
            sources = node.all_input_nodes
            is_size = not isinstance(node.meta.get("val"), torch.Tensor | list | tuple)
            from_input[node] = not is_size and any(from_input[source] for source in sources)
            if node.target in DETACH and kinds[sources[0]] == ACTIVE:
                kinds[node] = detached
            elif is_size or node.op != "call_function" or family is NOTHING or is_statistic(node):
                kinds[node] = CONSTANT
            else:
                kinds[node] = _kind({kinds[source] for source in sources}, from_input[node])
        selects = selected_from(node, lambda n: kinds[n] == ACTIVE)
        if selects is not None:
            kinds[node] = ACTIVE
        graph.info[node] = NodeInfo(kinds[node], "network" if node in network else "objective", family, selects)


def _detaches(graph: OpGraph) -> bool:
    return any(node.target in DETACH for node in graph.operations())


def _has_other_ways(graph: OpGraph) -> bool:
    """Whether a float input leads to an output other than through what is detached."""
    pairs = zip(graph.placeholder_nodes, graph.placeholders)
    roots = {n for n, p in pairs if p.kind == "input" and is_float(n.meta.get("val"))}
    reached = roots | _descendants(roots, DETACH)
    return any(isinstance(node, fx.Node) and node in reached for node in graph.user_output_nodes)


def _kind(sources: set[str], from_input: bool) -> str:
    """Active from an active source; or where parameters meet the input (an embedding of token ids)."""
    if ACTIVE in sources:
        return ACTIVE
    if WEIGHT in sources:
        return ACTIVE if from_input else WEIGHT
    return CONSTANT


def _network(graph: OpGraph) -> set[fx.Node]:
    """Ancestors of the non-scalar float outputs, or of the logits they are made of; without any, of the last operations that
    use a parameter."""
    outputs = [node for node in graph.user_output_nodes if isinstance(node, fx.Node) and is_float(node.meta.get("val"))]
    if not outputs:
        raise InputError("the model returns no float tensor, so there is no output that a reward could be given to.")
    roots = [node for node in outputs if takes_reward(node.meta["val"])]
    weights = {n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"}
    if not roots:
        roots = [node for node in _descendants(weights) if set(node.all_input_nodes) & weights]
    return ancestors(network_ends(roots, weights))


def _descendants(roots: set[fx.Node], without: frozenset[Any] = frozenset()) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [user for node in roots for user in node.users]
    while stack:
        node = stack.pop()
        if node not in seen and node.target not in without:
            seen.add(node)
            stack.extend(node.users)
    return seen
