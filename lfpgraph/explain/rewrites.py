"""Changes of a graph that a question asks for: positions hand their relevance to tokens; some channels alone pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import AttributionError
from ..graph.graph import (
    ACTIVE,
    CONSTANT,
    WEIGHT,
    NodeInfo,
    OpGraph,
    Placeholder,
    ancestors,
    family_of,
    is_float,
    shape_of,
)
from ..registry import PRODUCT, SPLIT
from .readings import TOKENS, lookups_of, named

__all__ = ["condition_channels", "hand_positions", "masks_of", "shapes_of"]

aten = torch.ops.aten
_ANGLES = (aten.cos.default, aten.sin.default)


def hand_positions(graph: OpGraph) -> None:
    """Make position embeddings and rotary angles activations of their own where they meet tokens, one for each sample; in place.

    An embedding of positions is what is added to activations [n, length, features], is made of parameters or buffers and differs
    from token to token. Angles are what activations are multiplied by and is made of cosines or sines.

    Raises:
        AttributionError: there are none.
    """
    inputs = [(n, p) for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input"]
    ids = [(n, p.target) for n, p in inputs if not is_float(n.meta.get("val")) and lookups_of(graph, n)]
    found = 0
    for node in list(graph.operations()):
        family = graph.info[node].family
        if graph.info[node].kind != ACTIVE or family not in (SPLIT, PRODUCT) or len(node.args) < 2:
            continue
        for i, (x, term) in enumerate((node.args[:2], node.args[1::-1])):
            if not isinstance(x, fx.Node) or not isinstance(term, fx.Node) or graph.info[x].kind != ACTIVE:
                continue
            if (
                graph.info[term].kind == ACTIVE
                or not is_float(term.meta.get("val"))
                or not _is_position(graph, term, family)
            ):
                continue
            tokens = next((t for n, target in ids if (t := _tokens(x, term, n, target)) is not None), None)
            if tokens is not None:
                placed = _added(graph, node, aten.expand_as.default, (term, x), ACTIVE)
                placed.meta[TOKENS] = tokens
                node.args = tuple(placed if place == 1 - i else arg for place, arg in enumerate(node.args))
                found += 1
    if not found:
        raise AttributionError(
            'positions="tokens": no position embedding is added to tokens here, and no rotary angle turns them; '
            "leave positions out"
        )
    graph.module.recompile()


def _is_position(graph: OpGraph, term: fx.Node, family: Any) -> bool:
    behind = ancestors([term])
    if any(n.target in _ANGLES for n in behind):
        return True
    if family is PRODUCT:
        return False
    held = {
        n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind in ("parameter", "buffer", "constant")
    }
    return graph.info[term].kind == WEIGHT or any(is_float(n.meta.get("val")) for n in behind & held)


def _tokens(x: fx.Node, term: fx.Node, ids: fx.Node, target: int) -> tuple[int, int] | None:
    """The place of the token ids that a term's entries belong to, and their dimension in x; None if they do not."""
    whole, own, length = shape_of(x), shape_of(term), (shape_of(ids) or [""])[-1]
    if whole is None or own is None or len(own) > len(whole) or length == "1" or ids not in ancestors([x]):
        return None
    aligned = ["1"] * (len(whole) - len(own)) + own
    dims = [i for i in range(1, len(whole) - 1) if aligned[i] != "1"]
    fits = len(dims) == 1 and aligned[dims[0]] == length and whole[-1] not in (length, "1")
    return (target, dims[0]) if fits else None


def _added(graph: OpGraph, before: fx.Node, op: Any, args: Sequence[Any], kind: str) -> fx.Node:
    """A new node before another."""
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(op, tuple(args))
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
    mode = next((v.fake_mode for v in values if hasattr(v, "fake_mode")), None)
    with torch.no_grad():
        if mode is None:
            node.meta["val"] = op(*values)
        else:
            with mode:
                node.meta["val"] = op(*values)
    graph.info[node] = NodeInfo(kind, "network", family_of(node))
    return node


def condition_channels(graph: OpGraph, masks: Mapping[str, Tensor]) -> None:
    """Let relevance pass the outputs of these modules only where their masks are 1; what they compute stays the same. In place.

    The masks are constants of the graph, named after the modules, so that others of their shapes may take their place.

    Raises:
        AttributionError: a module does not exist, or its output does not depend on the inputs.
    """
    for name, mask in masks.items():
        node = named(graph, name, "condition")
        if graph.info[node].kind != ACTIVE:
            raise AttributionError(f"condition: the output of {name!r} does not depend on the model's inputs")
        with graph.graph.inserting_after(graph.placeholder_nodes[-1]):
            given = graph.graph.placeholder(f"condition_{len(graph.placeholders)}")
        mode = getattr(node.meta["val"], "fake_mode", None)
        given.meta["val"] = mask if mode is None else mode.from_tensor(mask, static_shapes=True)
        graph.placeholders.append(Placeholder("constant", f"condition {name}"))
        graph.constants[f"condition {name}"] = mask
        graph.info[given] = NodeInfo(CONSTANT, "network")
        after, users = node.next, list(node.users)
        kept = _added(graph, after, aten.mul.Tensor, (node, given), ACTIVE)
        whole = _added(graph, after, aten.detach.default, (node,), CONSTANT)
        still = _added(graph, after, aten.detach.default, (kept,), CONSTANT)
        rest = _added(graph, after, aten.sub.Tensor, (whole, still), CONSTANT)
        passed = _added(graph, after, aten.add.Tensor, (kept, rest), ACTIVE)
        for user in users:
            user.replace_input_with(node, passed)
    graph.module.recompile()


def masks_of(graph: OpGraph, condition: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks of a condition, each of as many dimensions as the module's output, by the module's name.

    Args:
        condition: by module, numbers of channels, or a tensor of numbers or bools that broadcasts to its output. Channels are
            dimension 1, of [n, length, features] the features.

    Raises:
        AttributionError: no such module or channel, or a mask that does not fit.
    """
    masks = {}
    for name, chosen in condition.items():
        like = named(graph, name, "condition").meta["val"]
        shape = list(like.shape)
        dim = 2 if len(shape) == 3 else 1
        if isinstance(chosen, Tensor) and (chosen.dtype == torch.bool or chosen.is_floating_point()):
            given = [1] * (len(shape) - chosen.dim()) + list(chosen.shape)
            if len(given) > len(shape) or given[0] != 1 or any(a not in (1, b) for a, b in zip(given[1:], shape[1:])):
                raise AttributionError(
                    f"condition: a mask of shape {list(chosen.shape)} does not broadcast to one output of {name!r}, {shape[1:]}"
                )
            masks[name] = chosen.detach().to(device=like.device, dtype=like.dtype).reshape(given)
            continue
        channels = chosen.tolist() if isinstance(chosen, Tensor) else chosen
        channels = list(channels) if isinstance(channels, list | tuple | range | set) else [channels]
        if len(shape) < 2 or not all(type(c) is int and 0 <= c < shape[dim] for c in channels):
            known = f"channels 0 to {shape[dim] - 1}" if len(shape) > 1 else "no channels"
            raise AttributionError(f"condition: {name!r} has {known}, not {channels}")
        mask = torch.zeros(
            [shape[dim] if i == dim else 1 for i in range(len(shape))], dtype=like.dtype, device=like.device
        )
        mask.transpose(0, dim)[channels] = 1
        masks[name] = mask
    return masks


def shapes_of(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a program for a condition depends on: the modules, and the shapes of masks."""
    return tuple(
        (name, tuple(c.shape) if isinstance(c, Tensor) and c.dim() > 1 else None) for name, c in condition.items()
    )
