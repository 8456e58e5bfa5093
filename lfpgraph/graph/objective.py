"""Where the network ends: log-probabilities, and sums of them, are part of the objective.

A model may return its logits, or the log-probabilities of the labels, or both beside its loss. What follows the logits is
the same function of them wherever it is written, and takes the true gradient; so the feedback is the same in all forms.
It is found by its operations alone: a log-softmax (or a softmax and a log, a logsumexp, a cross-entropy) and what only
selects, sums, scales or masks before and after it, as far as no parameter comes in.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from ..registry import CAST, CHOICE, PRODUCT, QUOTIENT, REDUCTION, SELECTION, SOFTMAX, SPLIT, VIEW
from .graph import family_of, is_float

__all__ = ["network_ends"]

aten = torch.ops.aten
_LOGS = {
    aten._log_softmax.default,
    aten.cross_entropy_loss.default,
    aten.log_softmax.int,
    aten.logsumexp.default,
    aten.special_log_softmax.default,
}
_OF_PROBABILITIES = {
    aten.log.default,
    aten.nll_loss_forward.default,
    aten.nll_loss2d_forward.default,
    aten.nll_loss_nd.default,
}
_PLAIN = {VIEW, CAST, SELECTION, SOFTMAX, REDUCTION, SPLIT, PRODUCT, QUOTIENT, CHOICE}
_ALSO = (
    _LOGS
    | _OF_PROBABILITIES
    | {aten.exp.default, aten.clamp.default, aten.clamp_min.default, aten.minimum.default, aten.maximum.default}
)


def network_ends(outputs: Collection[fx.Node], weights: Collection[fx.Node]) -> list[fx.Node]:
    """The last nodes of the network, for a model that returns these float outputs.

    Args:
        outputs: what the model returns and could be given a reward.
        weights: the placeholders of its parameters.
    """
    weighted = _of_weights_alone(weights)
    ends: dict[fx.Node, None] = {}
    for output in outputs:
        behind = _objective_before(output, weighted)
        starts = _logits(behind) if behind else set()
        ends |= dict.fromkeys(_stop_at(output, starts, behind) if starts else [output])
    return list(ends)


def _of_weights_alone(weights: Collection[fx.Node]) -> set[fx.Node]:
    """Parameters, and what is computed of parameters and constants alone."""
    found = set(weights)
    if found:
        for node in next(iter(found)).graph.nodes:
            sources = node.all_input_nodes
            if node.op == "call_function" and sources and any(n in found for n in sources):
                if all(n in found or n.op != "placeholder" and not n.all_input_nodes for n in sources):
                    found.add(node)
    return found


def _may_be_objective(node: fx.Node, weighted: set[fx.Node]) -> bool:
    if node.op != "call_function" or any(n in weighted for n in node.all_input_nodes):
        return False
    return family_of(node) in _PLAIN or node.target in _ALSO


def _objective_before(output: fx.Node, weighted: set[fx.Node]) -> set[fx.Node]:
    """The output and the nodes before it, as far as they may be part of an objective."""
    found: set[fx.Node] = set()
    stack = [output]
    while stack:
        node = stack.pop()
        if node not in found and _may_be_objective(node, weighted):
            found.add(node)
            stack += _floats(node)
    return found


def _floats(node: fx.Node) -> list[fx.Node]:
    def carries(value: object) -> bool:
        return any(map(is_float, value)) if isinstance(value, list | tuple) else is_float(value)

    return [n for n in node.all_input_nodes if carries(n.meta.get("val"))]


def _logits(nodes: set[fx.Node]) -> set[fx.Node]:
    """What the logarithms of probabilities among these nodes are taken of."""
    takes_log = any(node.target in _OF_PROBABILITIES for node in nodes)
    logs = {n for n in nodes if n.target in _LOGS or (takes_log and family_of(n) is SOFTMAX)}
    return {source for node in logs for source in _floats(node)[:1]}


def _stop_at(output: fx.Node, starts: set[fx.Node], objective: set[fx.Node]) -> list[fx.Node]:
    """Where the ways back from an output leave the objective: at the logits, or at what may be no part of one."""
    ends: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack = [output]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in starts or node not in objective:
            ends[node] = None
        else:
            stack += _floats(node)
    return [node for node in ends if node.op == "call_function"] or [output]
