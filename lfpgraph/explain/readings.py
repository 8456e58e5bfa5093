"""What is read off an explanation's walk: inputs, embeddings of token ids, parameters, modules and nodes by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import AttributionError, near
from ..graph.graph import OpGraph, is_float, module_path
from ..registry import find_rule

__all__ = ["Reading", "lookups_of", "named"]

aten = torch.ops.aten
_LOOKUPS = {aten.embedding.default}
_FOLLOWED = {"view", "cast"}


@dataclass(frozen=True)
class Reading:
    """A node whose reward is asked for, and what it stands for."""

    node: fx.Node
    kind: str  # "input", "tokens", "node" or "parameter"
    name: Any


def lookups_of(node: fx.Node) -> list[fx.Node]:
    """The embeddings that are looked up by an integer input itself, not by something computed from it."""
    found = []
    for user in node.users:
        entry = find_rule(user.target) if user.op == "call_function" else None
        if user.target in _LOOKUPS and user.args[1] is node:
            if len(user.meta["val"].shape) == len(node.meta["val"].shape) + 1:
                found.append(user)
        elif entry is not None and entry.family.name in _FOLLOWED and _is_tensor(user):
            if len(user.meta["val"].shape) == len(node.meta["val"].shape):
                found += lookups_of(user)
    return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def named(graph: OpGraph, name: str) -> fx.Node:
    """The node of a name, or the last one of a module that others use.

    Raises:
        AttributionError: there is neither.
    """
    nodes = list(graph.graph.nodes)
    for node in nodes:
        if node.name == name and is_float(node.meta.get("val")):
            return node
    ends = _ends(graph, name)
    if ends:
        return ends[-1]
    modules = sorted(
        {path for n in graph.operations() if (path := module_path(n)) and not path.startswith("_empty_nn")}
    )
    raise AttributionError(
        f"record={name!r} is no module or node of the graph{near(name, modules)}; modules: {', '.join(modules[:20])}"
    )


def _ends(graph: OpGraph, module: str) -> list[fx.Node]:
    inside = {n for n in graph.operations() if _within(module_path(n), module)}
    return [n for n in graph.operations() if n in inside and is_float(n.meta.get("val")) and set(n.users) - inside]


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")
