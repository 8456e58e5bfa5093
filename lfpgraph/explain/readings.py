"""What is read off an explanation's walk: inputs, embeddings of token ids, parameters, modules and nodes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import AttributionError, InputError, near
from ..graph.graph import OpGraph, is_float, module_path
from ..registry import CAST, VIEW

__all__ = ["TOKENS", "Reading", "ends_of", "lookups_of", "named", "readings_of"]

aten = torch.ops.aten
TOKENS = "tokens_of_position"  # in a node's meta: whose tokens its relevance is handed to (see `rewrites`)


@dataclass(frozen=True)
class Reading:
    """A node whose reward is asked for, and what it stands for."""

    node: fx.Node
    kind: str  # "input", "tokens", "positions", "node" or "parameter"
    name: Any  # of positions: the place of the token ids, and the dimension of tokens


def lookups_of(graph: OpGraph, node: fx.Node) -> list[fx.Node]:
    """The embeddings that are looked up by an integer input itself, not by something computed from it."""
    found = []
    for user in node.users:
        if user.target is aten.embedding.default and user.args[1] is node:
            if len(user.meta["val"].shape) == len(node.meta["val"].shape) + 1:
                found.append(user)
        elif _counts_from_the_end(user, node):  # ONNX's Gather
            found += lookups_of(graph, user)
        elif graph.info[user].family in (VIEW, CAST) and isinstance(user.meta.get("val"), Tensor):
            if len(user.meta["val"].shape) == len(node.meta["val"].shape):
                found += lookups_of(graph, user)
    return found


def _counts_from_the_end(node: fx.Node, ids: fx.Node) -> bool:
    """Whether a node is `where(ids < 0, ids + size, ids)`, which leaves every token as it is."""
    if node.target is not aten.where.self or node.args[2] is not ids:
        return False
    below, raised = node.args[:2]
    return (
        isinstance(below, fx.Node) and below.target is aten.lt.Scalar and below.args == (ids, 0)
        and isinstance(raised, fx.Node) and raised.target is aten.add.Tensor and raised.args[0] is ids
    )  # fmt: skip


def readings_of(graph: OpGraph, record: Sequence[str] = (), parameters: bool = False) -> list[Reading]:
    """The nodes of a graph whose relevance is to be read off: inputs, and those of `record` and the parameters if asked for.

    Raises:
        InputError: nothing can have relevance. AttributionError: a recorded name does not exist.
    """
    readings: list[Reading] = []
    for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
        if placeholder.kind == "input" and is_float(node.meta.get("val")):
            readings.append(Reading(node, "input", placeholder.target))
        elif placeholder.kind == "input":
            readings += [Reading(n, "tokens", placeholder.target) for n in lookups_of(graph, node)]
        elif placeholder.kind == "parameter" and parameters:
            readings.append(Reading(node, "parameter", placeholder.target))
    if not readings and not record:
        raise InputError(
            "the model has no float input, and its integer inputs are looked up in no embedding, so there is nothing to give "
            "relevance to; pass float inputs (inputs_embeds), or record= a module"
        )
    readings += [Reading(n, "positions", n.meta[TOKENS]) for n in graph.operations() if TOKENS in n.meta]
    return readings + [Reading(named(graph, name), "node", name) for name in record]


def named(graph: OpGraph, name: str, what: str = "record") -> fx.Node:
    """The node of a name, or the last one of a module that others use.

    Args:
        what: for messages, which argument the name was given by.

    Raises:
        AttributionError: there is neither.
    """
    if not isinstance(name, str):
        raise AttributionError(f"{what}: {name!r} must be the name of a module or node")
    nodes = list(graph.graph.nodes)
    for node in nodes:
        if node.name == name and is_float(node.meta.get("val")):
            return node
    ends = ends_of(graph, name)
    if ends:
        return ends[-1]
    modules = sorted(
        {path for n in graph.operations() if (path := module_path(n)) and not path.startswith("_empty_nn")}
    )
    raise AttributionError(
        f"{what}: {name!r} is no module or node of the graph{near(name, modules)}; modules: {', '.join(modules[:20])}"
    )


def ends_of(graph: OpGraph, module: str) -> list[fx.Node]:
    """The float results of a module that others use."""
    inside = {n for n in graph.operations() if f"{module_path(n)}.".startswith(f"{module}.")}
    return [n for n in graph.operations() if n in inside and is_float(n.meta.get("val")) and set(n.users) - inside]
