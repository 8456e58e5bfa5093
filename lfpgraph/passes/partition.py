"""Cuts the joint graph in two: what forward runs and keeps, and what feedback runs."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..graph.graph import ancestors
from .nodes import draws, users_of
from .recompute import Share, choose_recomputed, choose_remade, norms_from_statistics

__all__ = ["build", "random_nodes", "split"]

aten = torch.ops.aten


def split(
    traced: fx.GraphModule, n_values: int, n_outputs: int, share: Share | None = None, once: bool = False
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut the joint graph: ancestors of the outputs are forward, the rest is feedback; what is light is computed twice.

    Args:
        traced: placeholders are `n_values` values and then the signals; results are `n_outputs` outputs and then signals.
        share: how much to keep between them; the rest is computed again (see `recompute`).
        once: feedback will run several times for each forward, so what hangs on no signal is worked out ahead and kept.

    Returns:
        Forward, values -> [outputs..., saved...], and feedback, [saved..., signals...] -> signals.
    """
    nodes = list(traced.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values, signals = placeholders[:n_values], placeholders[n_values:]
    results = list(nodes[-1].args[0])
    from_signals = users_of(signals, nodes)
    ahead = ancestors([r for r in results[:n_outputs] if isinstance(r, fx.Node)])
    ahead |= {n for n in random_nodes(nodes) if n not in from_signals}
    if once:
        ahead |= {n for n in nodes if n not in from_signals and n.op not in ("placeholder", "output")}
    ahead |= {n for n in nodes if n.target is operator.getitem and n.args[0] in ahead}
    feedback_nodes = [n for n in nodes if n.op not in ("placeholder", "output") and n not in ahead]
    with norms_from_statistics(nodes) if share is not None and share.statistics else contextlib.nullcontext():
        if share is None:
            again = choose_remade(feedback_nodes, nodes, ahead)
        else:
            again = choose_recomputed(list(traced.graph.nodes), ahead, feedback_nodes, share)
        available = (ahead | set(values)) - again
        kept = {n for node in itertools.chain(again, feedback_nodes) for n in node.all_input_nodes if n in available}
        kept |= {r for r in results[n_outputs:] if isinstance(r, fx.Node) and r in available}
        saved = [n for n in nodes if n in kept]
        feedback = build(traced, [*saved, *signals], _just_in_time(feedback_nodes, again), results[n_outputs:])
    ahead_body = [n for n in nodes if n in ahead and n.op != "placeholder"]
    return build(traced, values, ahead_body, results[:n_outputs] + saved), feedback


def _just_in_time(feedback: Sequence[fx.Node], again: set[fx.Node]) -> list[fx.Node]:
    """Feedback's nodes in their order, each after what it needs computed again."""
    body: list[fx.Node] = []
    done: set[fx.Node] = set()
    for node in feedback:
        stack = [node]
        while stack:
            top = stack[-1]
            waiting = [n for n in top.all_input_nodes if n in again and n not in done]
            if waiting:
                stack += waiting
            else:
                stack.pop()
                if top not in done:
                    done.add(top)
                    body.append(top)
    return body


def random_nodes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Random operations and what they need: drawn in the forward pass, never again."""
    return ancestors([n for n in nodes if draws(n)])


def build(
    owner: fx.GraphModule, inputs: Sequence[fx.Node], body: Sequence[fx.Node], results: Sequence[Any]
) -> fx.GraphModule:
    """A graph module that runs copies of the nodes in `body`, with `inputs` as placeholders; `owner` holds its constants."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
        env[node].meta = dict(node.meta)
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output([env[r] if isinstance(r, fx.Node) else r for r in results])
    graph.lint()
    return fx.GraphModule(owner, graph)
