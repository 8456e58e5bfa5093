"""Graphs of one operation, made from the samples of a rule, and the engine run on them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lfpgraph.rules.samples.table import Sample, samples
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.torch_version import TorchVersion
from torch.utils import _pytree as pytree

from lfpgraph.composites.composite import Composite, get_composite
from lfpgraph.engine.plan import Plan, make_plan
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.graph.classes import classify
from lfpgraph.graph.graph import NodeInfo, OpGraph, Placeholder, is_float
from lfpgraph.registry import Rule, find_rule, registered_rules

aten = torch.ops.aten
_CASES: dict[tuple[OpOverload, int], Case] = {}


@dataclass
class Case:
    """One operation on one sample.

    Attributes:
        graph: placeholders for the tensor arguments, the operation, its outputs (cast if no floats).
        tensors: the tensor arguments, in order.
        outputs: the float outputs that take a signal (all pieces of a split; otherwise the first).
        signals: a fixed signal for each of them.
    """

    op: OpOverload
    sample: Sample
    entry: Rule
    graph: OpGraph
    tensors: list[Tensor]
    outputs: list[fx.Node]
    signals: list[Tensor]

    @property
    def carriers(self) -> list[int]:
        """Places of the tensor arguments that can carry reward."""
        return sorted({*self.sample.active, *self.sample.weight, *self.sample.bias})


def seed() -> None:
    """Seed what is in use: `torch.manual_seed` records the stack for a GPU that is not, which takes longer than a rule."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(0)


# Operations of which torch itself has had a derivative only since this version.
_YOUNG = {"aten.aminmax.default": (2, 12), "aten.narrow_copy.default": (2, 12), "aten.nextafter.default": (2, 13)}


def make_case(op: OpOverload, sample: Sample) -> Case:
    """The graph that calls `op` once; the same one for the same sample."""
    since = _YOUNG.get(str(op))
    if since is not None and TorchVersion(torch.__version__) < since:
        pytest.skip(f"torch {torch.__version__} has no derivative of {op}")
    key = (op, id(sample))
    if key not in _CASES:
        _CASES[key] = _make_case(op, sample)
    return _CASES[key]


def _make_case(op: OpOverload, sample: Sample) -> Case:
    entry = find_rule(op)
    assert entry is not None
    leaves, spec = pytree.tree_flatten((sample.args, sample.kwargs))
    graph = fx.Graph()
    tensors: list[Tensor] = []
    placeholders: list[Placeholder] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            node = graph.placeholder(f"x{len(tensors)}")
            node.meta["val"] = leaf
            kind = _kind(sample, len(tensors), leaf)
            placeholders.append(Placeholder(kind, f"w{len(tensors)}" if kind == "parameter" else len(tensors)))
            tensors.append(leaf)
            leaves[i] = node
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    seed()
    result = op(*sample.args, **sample.kwargs)
    node = _call(graph, op, args, kwargs, result)
    outputs = [node]
    if isinstance(result, list | tuple):
        count = len(result) if isinstance(result, list) else 1
        outputs = [_call(graph, operator.getitem, (node, i), {}, result[i]) for i in range(count)]
    elif not is_float(result):
        dtype = next((t.dtype for t in tensors if is_float(t)), torch.float64)
        outputs = [_call(graph, aten._to_copy.default, (node,), {"dtype": dtype}, result.to(dtype))]
    graph.output(outputs)
    owner = OpGraph(
        module=fx.GraphModule(nn.Module(), graph),
        placeholders=placeholders,
        mutations=[],
        out_spec=None,
        out_leaves=[],
        constants={},
        dynamic=False,
        tracer="values",
    )
    if any(p.kind != "buffer" for p in placeholders) and any(is_float(t) for t in tensors):
        classify(owner)
    else:
        owner.info = {n: NodeInfo("constant", "network") for n in owner.graph.nodes}
    # a scalar output alone would be taken for a loss
    owner.info = {n: NodeInfo(info.kind, "network", info.family) for n, info in owner.info.items()}
    copied = list(owner.output_nodes)
    generator = torch.Generator().manual_seed(1)
    signals = []
    for out in copied:
        value = out.meta["val"]
        draw = torch.randint(-8, 9, tuple(value.shape), generator=generator) / 4
        signals.append(draw.to(value.device, value.dtype))
    return Case(op, sample, entry, owner, tensors, copied, signals)


def _kind(sample: Sample, i: int, leaf: Tensor) -> str:
    if i in sample.active or not (leaf.dtype.is_floating_point or leaf.dtype == torch.bool):
        return "input"
    return "parameter" if i in (*sample.weight, *sample.bias) else "buffer"


def _call(graph: fx.Graph, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
    node = graph.call_function(target, tuple(args), kwargs)
    node.meta["val"] = value
    return node


def plan_of(case: Case, composite: str | Composite, epsilon: float | None = None) -> Plan:
    """The plan for a composite; `epsilon` replaces its own."""
    chosen = get_composite(composite)
    if epsilon is not None:
        chosen = chosen.override("*", epsilon=epsilon)
    nodes = case.graph.placeholder_nodes
    return make_plan(case.graph, chosen, {nodes[i] for i in case.carriers}, on_missing="error")


def run(case: Case, composite: str | Composite = "lfp-epsilon", epsilon: float | None = None) -> list[Tensor | None]:
    """The signal of each tensor argument, by the eager walk."""
    plan = plan_of(case, composite, epsilon)
    seed()
    with torch.no_grad():
        _, calls, values = run_forward(plan, case.tensors)
        found = run_backward(plan, calls, values, dict(zip(case.outputs, case.signals)))
    return [found.get(node) for node in case.graph.placeholder_nodes]


def run_op(case: Case, tensors: Sequence[Tensor], tape: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """The operation itself on other tensors: its float outputs (or the cast one), and its leaves."""
    leaves, spec = pytree.tree_flatten((case.sample.args, case.sample.kwargs))
    own = [t.detach().requires_grad_() if tape and i in case.carriers else t for i, t in enumerate(tensors)]
    given = iter(own)
    args, kwargs = pytree.tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], spec)
    seed()
    result = case.op(*args, **kwargs)
    if isinstance(result, tuple):
        result = result[0]
    pieces = list(result) if isinstance(result, list) else [result]
    return [z if is_float(z) else z.to(case.signals[0].dtype) for z in pieces], own


def autograd(case: Case) -> list[Tensor | None]:
    """What torch.autograd says: the vector-Jacobian product for each tensor argument, None for constants."""
    outputs, leaves = run_op(case, case.tensors, tape=True)
    pairs = [(z, s) for z, s in zip(outputs, case.signals) if z.requires_grad]
    answer: list[Tensor | None] = [None] * len(leaves)
    if pairs:
        zs, signals = zip(*pairs)
        found = torch.autograd.grad(zs, [leaves[i] for i in case.carriers], signals, allow_unused=True)
        for i, g in zip(case.carriers, found):
            answer[i] = g
    return answer


def as_reals(x: Tensor) -> Tensor:
    """All entries in one row, in float64; a complex number as its real and imaginary part."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1).double()


def from_reals(row: Tensor, like: Tensor) -> Tensor:
    """The tensor of the shape of `like` that `as_reals` gives as this row."""
    return torch.view_as_complex(row.view(*like.shape, 2)) if like.is_complex() else row.view(like.shape)


def jacobian(case: Case, place: int) -> Tensor:
    """The dense Jacobian [outputs, inputs] of all outputs with respect to one tensor argument, in float64."""
    x = case.tensors[place].detach().requires_grad_()
    outputs, _ = run_op(case, [x if i == place else t for i, t in enumerate(case.tensors)])
    z = torch.cat([as_reals(out) for out in outputs])
    rows = []
    for unit in torch.eye(z.numel(), dtype=torch.float64) if z.requires_grad else []:
        (row,) = torch.autograd.grad(z, x, unit, retain_graph=True, allow_unused=True)
        rows.append(as_reals(torch.zeros_like(x) if row is None else row))
    return torch.stack(rows) if rows else torch.zeros(z.numel(), as_reals(x).numel(), dtype=torch.float64)


def all_cases(dtype: torch.dtype = torch.float64) -> list[tuple[OpOverload, Sample]]:
    """Every registered operation with every sample it has."""
    return [(entry.op, sample) for entry in registered_rules() for sample in samples(entry.op, dtype)]


def short_name(op: OpOverload) -> str:
    """`mm` for aten.mm.default, `add.Tensor` for aten.add.Tensor."""
    return str(op).removeprefix("aten.").removesuffix(".default")
