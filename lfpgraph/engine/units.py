"""Units: single operations, regions and masks of the graph, each with its rule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from ..composites.composite import Ruleset
from ..graph.graph import ACTIVE, WEIGHT, OpGraph, is_float
from ..graph.regions import Region
from ..registry import ACTIVATION, GENERAL, NORMALISATION, NOTHING, VIEW, Family, find_rule
from ..rules.activations import activation
from ..rules.views import vjp

__all__ = ["Unit", "Ways", "all_still", "is_differentiable", "op_unit", "region_unit"]


@dataclass
class Unit:
    """A step of the walk.

    Attributes:
        nodes: the graph nodes it stands for; the last gives the output.
        inputs: the node of each tensor argument, in order (for a region: each outside input once, the entry first).
        active, weightlike, wanted: for each input: its class, and whether someone waits for its signal.
        handler: the rule; None when no reward passes.
        epsilon: of the factor on its output; `option_epsilon` is what the handler may use itself.
        rectified: the relu that alone reads the output, which may stand for it in the epsilon factor.
        ends_layer: a scale or bias that closes a layer written out, so that its answers are stabilized already.
        zeroed_by: parameters that, as long as one is wholly zero, make the output zero and are to learn.
        constants: nodes of a region whose result counts as a constant there (the statistics of a norm, say).
        origin: "rule", "region", "gradient" (weight-like or objective part), "derived", "none" or "uncovered".
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    active: tuple[bool, ...]
    weightlike: tuple[bool, ...]
    wanted: tuple[bool, ...]
    handler: Callable[..., Any] | None
    family: Family
    needs_vjp: bool
    option_epsilon: float
    origin: str
    epsilon: float = 0.0
    ends_layer: bool = False
    rectified: fx.Node | None = None
    zeroed_by: tuple[fx.Node, ...] = ()
    constants: frozenset[fx.Node] = frozenset()

    @property
    def node(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def is_region(self) -> bool:
        return len(self.nodes) > 1


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []

    def visit(source: fx.Node) -> fx.Node:
        if isinstance(source.meta.get("val"), torch.Tensor) or isinstance(source.meta.get("val"), list | tuple):
            found.append(source)
        return source

    fx.node.map_arg((node.args, node.kwargs), visit)
    return found


def _can_carry(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(is_float(item) for item in value)
    return is_float(value)


def all_still(graph: OpGraph, unit: Unit, still: set[fx.Node]) -> bool:
    """Whether the unit depends on the model's input, but only through what counts as constant."""
    sources = [n for node in unit.nodes for n in node.all_input_nodes if n not in unit.nodes]
    return any(n in still for n in sources) and all(n in still or graph.info[n].kind != ACTIVE for n in sources)


class Ways(NamedTuple):
    """Where signals can go: nodes reached from what is wanted, nodes that are constant (as inputs of no unit active),
    and inputs of one unit that its structure blocks."""

    reached: set[fx.Node]
    still: set[fx.Node]
    blocked: set[fx.Node]


def _flags(graph: OpGraph, inputs: list[fx.Node], ways: Ways) -> dict[str, tuple[bool, ...]]:
    quiet = ways.still | ways.blocked
    return {
        "active": tuple(graph.info[n].kind == ACTIVE and _can_carry(n) and n not in quiet for n in inputs),
        "weightlike": tuple(graph.info[n].kind == WEIGHT for n in inputs),
        "wanted": tuple(n in ways.reached and _can_carry(n) and n not in ways.blocked for n in inputs),
    }


def op_unit(graph: OpGraph, node: fx.Node, ruleset: Ruleset, ways: Ways) -> Unit:
    inputs = _tensor_inputs(node)
    flags = _flags(graph, inputs, ways)
    info = graph.info[node]
    if info.selects is not None and ruleset.rules:
        return _mask_unit(graph, node, inputs, ruleset, ways.reached)
    entry = find_rule(node.target)
    common: dict[str, Any] = {
        "nodes": (node,),
        "inputs": tuple(inputs),
        "option_epsilon": ruleset.epsilon,
        **flags,
    }
    if node.target is operator.getitem:
        return Unit(handler=None, family=VIEW, needs_vjp=False, origin="rule", **common)
    blocked = entry is not None and entry.family is NOTHING
    if blocked or not any(flags["wanted"]) or not _can_carry(node):
        return Unit(handler=None, family=entry.family if entry else NOTHING, needs_vjp=False, origin="none", **common)
    if not ruleset.rules or info.kind != ACTIVE or info.part == "objective":
        own = entry is not None and getattr(entry.handler, "is_vjp", False)  # a rule that writes out the derivative
        handler = entry.handler if own else vjp  # type: ignore[union-attr]
        return Unit(handler=handler, family=GENERAL, needs_vjp=not own, origin="gradient", **common)
    override = ruleset.handler(node.target, entry.family.name if entry else "")
    if entry is None and override is None:
        return Unit(handler=vjp, family=GENERAL, needs_vjp=True, origin="derived", **common)
    handler = override or entry.handler  # type: ignore[union-attr]
    family = entry.family if entry else GENERAL
    needs = override is not None or entry.needs_vjp  # type: ignore[union-attr]
    return Unit(handler=handler, family=family, needs_vjp=needs, origin="rule", **common)


def _mask_unit(graph: OpGraph, node: fx.Node, inputs: list[fx.Node], ruleset: Ruleset, reached: set[fx.Node]) -> Unit:
    """A mask and, beside its own arguments, the tensor it selects from, which takes its reward."""
    selects = graph.info[node].selects
    assert selects is not None
    wanted = selects in reached and graph.info[node].part == "network"
    return Unit(
        nodes=(node,),
        inputs=(*inputs, selects),
        active=(*(False for _ in inputs), True),
        weightlike=tuple(False for _ in (*inputs, selects)),
        wanted=(*(False for _ in inputs), wanted),
        handler=activation if wanted else None,
        family=ACTIVATION,
        needs_vjp=False,
        option_epsilon=ruleset.epsilon,
        origin="rule" if wanted else "none",
    )


def region_unit(graph: OpGraph, region: Region, ruleset: Ruleset, ways: Ways) -> Unit:
    inside = set(region.nodes)
    inputs = [region.entry]
    for node in region.nodes:
        inputs += [n for n in _tensor_inputs(node) if n not in inside and n not in inputs]
    flags: dict[str, Any] = _flags(graph, inputs, ways)
    is_norm = region.kind == "normalisation"
    wants = any(flags["wanted"])
    handler = ruleset.handler(None, region.kind) or (vjp if is_norm else activation)
    constants: frozenset[Any] = getattr(handler, "constants", frozenset())
    return Unit(
        nodes=region.nodes,
        inputs=tuple(inputs),
        handler=handler if wants else None,
        family=NORMALISATION if is_norm else ACTIVATION,
        needs_vjp=is_norm or any(asked and weight for asked, weight in zip(flags["wanted"], flags["weightlike"])),
        option_epsilon=ruleset.epsilon,
        origin="region" if wants else "none",
        constants=frozenset(node for node in region.nodes if node.target in constants),
        **flags,
    )


def is_differentiable(node: fx.Node) -> bool:
    """Whether autograd has a derivative for the node, tried on its fake values."""

    def fresh(source: fx.Node) -> Any:
        value = source.meta.get("val")
        return value.detach().requires_grad_() if isinstance(value, torch.Tensor) and is_float(value) else value

    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), fresh)
        with torch.enable_grad():
            out = node.target(*args, **kwargs)  # type: ignore[operator]
        tensors = [t for t in (out if isinstance(out, list | tuple) else [out]) if is_float(t) and t.requires_grad]
        leaves = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if is_float(t)]
        if not tensors:
            return False
        found = torch.autograd.grad(tensors, leaves, [torch.ones_like(t) for t in tensors], allow_unused=True)
        return any(g is not None for g in found)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
