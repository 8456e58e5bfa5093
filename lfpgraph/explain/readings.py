"""What is read off an explanation's walk: inputs, embeddings of token ids, parameters, modules and nodes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from ..errors import AttributionError, InputError, near
from ..graph.graph import ACTIVE, OpGraph, ancestors, is_float, module_path, shape_of
from ..registry import CAST, CONTRACTION, VIEW

__all__ = ["TOKENS", "Reading", "Slot", "ends_of", "lookups_of", "named", "of_tokens", "readings_of", "slot_of"]

aten = torch.ops.aten
TOKENS = "tokens_of_position"  # in a node's meta: whose tokens its relevance is handed to (see `rewrites`)


class Slot(NamedTuple):
    """Where the tokens that are looked up are one entry of a dimension of an input: the dimension, the entry, of how many."""

    dim: int
    entry: int
    size: int


@dataclass(frozen=True)
class Reading:
    """A node whose reward is asked for, and what it stands for."""

    node: fx.Node
    kind: str  # "input", "tokens", "positions", "node" or "parameter"
    name: Any  # of positions: the place of the token ids, and the dimension of tokens
    slot: Slot | None = None


def lookups_of(graph: OpGraph, node: fx.Node) -> list[fx.Node]:
    """The embeddings that are looked up by an integer input itself, or by one entry of a dimension of it.

    Or by what is made of each of its numbers alone, as ONNX's Gather makes `where(ids < 0, ids + size, ids)`. Not one in a table
    that is an activation: its relevance goes on. A product of weights and of a code for each class (`ids[..., None] == classes`)
    is one.
    """
    chosen = [n for n in node.users if n.target is aten.select.int and node.op == "placeholder"]
    found = [lookup for n in chosen if not is_float(n.meta.get("val")) for lookup in lookups_of(graph, n)]
    hanging = {
        n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input"
    }  # on inputs in any way
    same = {node}
    for user in graph.operations():
        behind = hanging.intersection(user.all_input_nodes)
        hanging |= {user} if behind and _rank(user) >= 0 else set()  # sizes do not: they are the same for all ids
        if user.target is aten.embedding.default and user.args[1] in same:
            table: Any = user.args[0]
            found += [user] if graph.info[table].kind != ACTIVE and _rank(user) == _rank(node) + 1 else []
        elif behind and same.issuperset(behind) and _each_alone(graph, user, node):
            same.add(user)
    return found + (_coded(graph, node, node) if node.op == "placeholder" else [])


def _each_alone(graph: OpGraph, node: fx.Node, ids: fx.Node) -> bool:
    """Whether each of a node's numbers is made of one of the numbers of the ids."""
    info = graph.info[node]
    if info.kind == ACTIVE or info.family in (VIEW, CAST):
        return info.kind != ACTIVE and _rank(node) == _rank(ids)
    alone = torch.Tag.pointwise in getattr(node.target, "tags", ()) or (
        info.family is not None and info.family.elementwise
    )
    return alone and shape_of(node) == shape_of(ids)


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else -1


def _coded(graph: OpGraph, node: fx.Node, ids: fx.Node, compared: bool = False) -> list[fx.Node]:
    """Products of weights and of what compares the ids with classes."""
    found = []
    for user in node.users:
        info, value = graph.info[user], cast(Tensor, user.meta.get("val"))
        if user.target is aten.eq.Tensor and not compared:
            found += _coded(graph, user, ids, True)
        elif info.kind != ACTIVE and info.family in (VIEW, CAST) and (compared or not is_float(value)):
            found += _coded(graph, user, ids, compared)
        elif compared and info.kind == ACTIVE and info.family is CONTRACTION:
            alone = all(graph.info[source].kind != ACTIVE for source in user.all_input_nodes)
            found += [user] if alone and value.shape[:-1] == ids.meta["val"].shape else []
    return found


def slot_of(lookup: fx.Node, ids: fx.Node) -> Slot | None:
    """The entry of a dimension of the ids that is looked up; None if all of them are."""
    behind: Any = ancestors([lookup.args[1]]) if lookup.target is aten.embedding.default else ()  # type: ignore[list-item]
    chosen = next((n for n in behind if n.target is aten.select.int and n.args[0] is ids), None)
    if chosen is None:
        return None
    shape, dim = ids.meta["val"].shape, int(chosen.args[1])  # type: ignore[arg-type]
    return Slot(dim % len(shape), int(chosen.args[2]) % int(shape[dim]), int(shape[dim]))  # type: ignore[arg-type]


def of_tokens(slot: Slot | None, reward: Tensor) -> Tensor:
    """The reward of an input's tokens, summed over what was looked up for each, in the shape of the input."""
    reward = reward.sum(-1)
    if slot is None:
        return reward
    places = torch.arange(slot.size, device=reward.device).reshape(-1, *[1] * (reward.dim() - slot.dim))
    return torch.where(places == slot.entry, reward.unsqueeze(slot.dim), 0.0)


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
            readings += [Reading(n, "tokens", placeholder.target, slot_of(n, node)) for n in lookups_of(graph, node)]
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
