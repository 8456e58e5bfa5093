"""The places of a model that `patching` looks at: modules' outputs, attention heads, positions."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import AttributionError
from ..explain.readings import ends_of, named
from ..graph.graph import ACTIVE, OpGraph, is_float, maker_of, module_path
from ..registry import ATTENTION, CAST, CHOICE, CONTRACTION, RANDOM, SOFTMAX, VIEW

__all__ = ["Site", "sites_of"]


@dataclass(frozen=True)
class Site:
    """A node, and which of its parts are looked at one by one: none ("nodes"), "heads" or "positions"."""

    name: str
    node: fx.Node
    parts: str

    def effect(self, clean: Tensor, corrupt: Tensor, signal: Tensor | None, samples: int) -> Tensor:
        """The estimated effect of each part, `(corrupt - clean) * signal` summed over it: [n], or [n, parts], in float64.

        Args:
            samples: 1 where the metric is one number for all; the effects of all samples are added up then.
        """
        moved = torch.zeros_like(clean) if signal is None else torch.where(signal == 0, 0.0, (corrupt - clean) * signal)
        moved = moved.double()
        if self.parts == "heads":
            found = moved.transpose(1, -3).flatten(2).sum(2)
        elif self.parts == "positions":
            found = moved.sum(1) if moved.dim() == 4 else moved.flatten(2).sum(2)
        else:
            found = moved.flatten(1).sum(1)
        return found if samples == len(found) else found.sum(0, keepdim=True)

    def exact(self, runs: tuple[Tensor, Tensor], measure: Callable[[Tensor], Tensor]) -> Tensor:
        """The effect of each part by `measure(value of the node)`."""
        clean, corrupt = runs
        if self.parts == "nodes":
            return measure(corrupt)
        if self.parts == "heads":
            shape: tuple[int, ...] = (clean.shape[-3],)
            places: list[Any] = [(..., i, slice(None), slice(None)) for i in range(shape[0])]
        elif clean.dim() == 4:
            shape = tuple(clean.shape[2:])
            places = [(..., y, x) for y in range(shape[0]) for x in range(shape[1])]
        else:
            shape = (clean.shape[1],)
            places = [(slice(None), i) for i in range(shape[0])]
        found = []
        for place in places:
            value = clean.clone()
            value[place] = corrupt[place]
            found.append(measure(value))
        return torch.stack(found, 1).unflatten(1, shape)


def sites_of(graph: OpGraph, sites: str | Sequence[str], modules: Sequence[str], count: int) -> list[Site]:
    """The sites of a kind, or of these names, that depend on the inputs.

    Args:
        modules: patterns of names; of a kind, sites that fit none are left out. count: how many samples there are.

    Raises:
        AttributionError: there are none, or a name does not exist.
    """
    if not isinstance(sites, str):
        return [Site(name, _moving(graph, named(graph, name, "sites"), name), "nodes") for name in sites]
    if sites == "heads":
        found = [Site(module_path(n) or n.name, n, "heads") for n in graph.operations() if _is_heads(graph, n)]
    else:
        paths: dict[str, None] = {}
        for node in graph.operations():
            parts = module_path(node).split(".")
            paths |= dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts) + 1) if parts != [""])
        found, taken = [], set()
        for path in sorted(paths, key=lambda path: path.count(".")):  # of modules that end alike the outermost
            for node in ends_of(graph, path)[-1:]:
                if (
                    node not in taken
                    and node in graph.references
                    and len(node.meta["val"].shape) > (sites == "positions") + 1
                ):
                    taken.add(node)
                    found.append(Site(path, node, sites))
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    found = [s for s in found if s.node in graph.references and s.node.meta["val"].shape[0] == count]
    found = [s for s in found if any(fnmatch.fnmatchcase(s.name, pattern) for pattern in modules)]
    if not found:
        what = {"heads": "attention head whose output is [n, heads, length, features]"}.get(
            sites, "module's output [n, ...]"
        )
        raise AttributionError(
            f"sites={sites!r}: the model has no {what} that depends on its inputs, among {', '.join(modules)}"
        )
    return sorted(found, key=lambda site: order[site.node])


def _moving(graph: OpGraph, node: fx.Node, name: str) -> fx.Node:
    if node not in graph.references:
        raise AttributionError(f"sites: {name!r} does not depend on the model's inputs")
    return node


def _is_heads(graph: OpGraph, node: fx.Node) -> bool:
    """Whether a node is what attention heads give out: fused, or weights from a softmax times values."""
    value: Any = node.meta.get("val")
    family = graph.info[maker_of(node)].family
    if not is_float(value) or len(value.shape) != 4 or graph.info[node].kind != ACTIVE:
        return False
    if family is ATTENTION:
        return True
    operands = node.all_input_nodes
    return family is CONTRACTION and len(operands) == 2 and _from_softmax(graph, operands[0])


def _from_softmax(graph: OpGraph, node: fx.Node) -> bool:
    while node.op == "call_function" and graph.info[node].family in (VIEW, CAST, RANDOM, CHOICE):
        node = node.all_input_nodes[0]
    return node.op == "call_function" and graph.info[node].family is SOFTMAX
