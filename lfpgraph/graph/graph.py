"""OpGraph: a functional ATen graph of a model, with what each node means for reward."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from ..registry import Family, find_rule
from .calls import fill_slots, input_tensors, state_tensor, state_tensors

if TYPE_CHECKING:
    import networkx

__all__ = [
    "ACTIVE",
    "CASTS",
    "CONSTANT",
    "DETACH",
    "NEW",
    "WEIGHT",
    "NodeInfo",
    "OpGraph",
    "Placeholder",
    "ancestors",
    "family_of",
    "is_float",
    "is_statistic",
    "maker_of",
    "module_path",
    "operation_name",
    "shape_of",
    "takes_reward",
    "source_line",
]

ACTIVE = "active"
WEIGHT = "weight-like"
CONSTANT = "constant"
_aten = torch.ops.aten
CASTS = frozenset(
    {_aten._to_copy.default, _aten.to.dtype, _aten.to.dtype_layout}
)  # a trace has the first, a live run any

DETACH = frozenset({_aten.detach.default, _aten.detach_copy.default})
# what is made in the likeness of a tensor, and holds nothing of it
NEW = frozenset(
    {
        _aten.empty_like.default, _aten.full_like.default, _aten.new_empty.default, _aten.new_full.default,
        _aten.new_ones.default, _aten.new_zeros.default, _aten.ones_like.default, _aten.rand_like.default,
        _aten.randint_like.default, _aten.randn_like.default, _aten.zeros_like.default,
    }
)  # fmt: skip
_WRITES_STATISTICS = {
    torch.ops.aten._batch_norm_with_update_functional.default,
    torch.ops.aten._native_batch_norm_legit_functional.default,
}


@dataclass(frozen=True)
class Placeholder:
    """An input of the graph; `target` is its dotted name or index.

    Its kind is "parameter", "buffer", "constant", "input", "reference": a float input's value at the reference point, or
    "unrecorded": made of inputs where no gradients are recorded.
    """

    kind: str
    target: Any


@dataclass
class NodeInfo:
    """What is known of a node.

    Attributes:
        kind: "active" (depends on the model's input in a way that carries reward), "weight-like" (on parameters only)
            or "constant".
        part: "network" (rules apply) or "objective" (logits to loss: plain gradient).
        family: of the rule that its operation has in the registry; None without one.
        selects: for a mask, the tensor that it selects from and hands its reward to (see `selections`).
    """

    kind: str
    part: str
    family: Family | None = None
    selects: fx.Node | None = None


@dataclass
class OpGraph:
    """A traced model.

    Attributes:
        module: functional torch.fx graph of ATen operations; parameters and buffers are placeholders.
        placeholders: what each placeholder is.
        mutations: dotted names of the buffers that the first outputs update, in order.
        out_spec: pytree of the model's outputs; `out_leaves` holds a tensor position or a constant for each leaf.
        constants: tensors the trace found that are neither parameter nor buffer.
        dynamic: input sizes are symbolic, so one graph serves other batch and sequence sizes.
        tracer: "export" or "values" (specialised to one call's values, for one use only).
        info: what is known of each node, once it is classified.
        input_mutations: positions of the inputs that the outputs after the buffers update, in order.
        references: for nodes that depend on a float input, the node of the run at a reference point, where there is one.
    """

    module: fx.GraphModule
    placeholders: list[Placeholder]
    mutations: list[str]
    out_spec: Any
    out_leaves: list[Any]
    constants: dict[str, Any]
    dynamic: bool
    tracer: str
    info: dict[fx.Node, NodeInfo] = field(default_factory=dict)
    input_mutations: list[int] = field(default_factory=list)
    references: dict[fx.Node, fx.Node] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def placeholder_nodes(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def output_nodes(self) -> list[Any]:
        """Nodes (or constants) the graph returns: mutated buffers first, then the model's tensor outputs."""
        return list(next(node for node in reversed(self.graph.nodes) if node.op == "output").args[0])

    @property
    def user_output_nodes(self) -> list[Any]:
        return list(self.user_outputs(self.output_nodes))

    @property
    def rewarded_node(self) -> fx.Node | None:
        """The first of the model's outputs that a reward can be given to, None where there is none."""
        nodes = (node for node in self.user_output_nodes if isinstance(node, fx.Node))
        return next((node for node in nodes if takes_reward(node.meta.get("val"))), None)

    def user_outputs(self, outputs: Sequence[Any]) -> Sequence[Any]:
        """Of all that the graph returns, the model's tensor outputs."""
        return outputs[len(self.mutations) + len(self.input_mutations) :]

    def rebuild(self, user_outputs: Sequence[Any]) -> Any:
        """The model's own output structure, of its tensor outputs."""
        if len(self.out_leaves) == 1 and self.out_leaves[0] == ("tensor", 0) and self.out_spec.type is None:
            return user_outputs[0]
        leaves = [
            user_outputs[item] if kind == "tensor" else fill_slots(item, user_outputs) for kind, item in self.out_leaves
        ]
        return pytree.tree_unflatten(leaves, self.out_spec)

    def values(self, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> list[Any]:
        """The placeholders' values, from a call's tensors and the model's parameters and buffers by name."""
        result: list[Any] = []
        for placeholder in self.placeholders:
            if placeholder.kind in ("input", "reference"):
                result.append(tensors[placeholder.target])
            elif placeholder.kind == "constant":
                result.append(self.constants[placeholder.target])
            else:
                result.append(state_tensor(state, placeholder.target))
        return result

    def values_of_call(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The placeholders' values for one call of the model, without gradient."""
        values = self.values(input_tensors(args, kwargs), state_tensors(model))
        return [v.detach() if isinstance(v, Tensor) else v for v in values]

    def operations(self) -> Iterator[fx.Node]:
        """The nodes that compute: everything but placeholders, attributes and the output."""
        return (node for node in self.graph.nodes if node.op == "call_function")

    def to_networkx(self) -> networkx.DiGraph:
        """The graph as a `networkx.DiGraph`; nodes carry op, shape, dtype, module, source, kind and part."""
        import networkx

        result = networkx.DiGraph(tracer=self.tracer, dynamic=self.dynamic)
        for node in self.graph.nodes:
            value = node.meta.get("val")
            info = self.info.get(node)
            result.add_node(
                node.name,
                op=str(node.target) if node.op == "call_function" else node.op,
                shape=str(list(value.shape)) if isinstance(value, torch.Tensor) else "",
                dtype=str(value.dtype) if isinstance(value, torch.Tensor) else "",
                module=module_path(node),
                source=source_line(node),
                kind=info.kind if info else "",
                part=info.part if info else "",
            )
            for source in node.all_input_nodes:
                result.add_edge(source.name, node.name)
        return result

    def describe(self, node: fx.Node) -> str:
        """`op (module path, source line)` of a node, for messages."""
        where = ", ".join(part for part in (module_path(node), source_line(node)) if part)
        return f"{node.target} ({node.name}{', ' + where if where else ''})"


def ancestors(roots: Iterable[fx.Node], among: Callable[[fx.Node], bool] = lambda node: True) -> set[fx.Node]:
    """The roots and every node they are computed from, as far as a way back leads through nodes `among`."""
    seen: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen and among(node):
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return seen


def shape_of(node: fx.Node) -> list[str] | None:
    """The sizes of a node's tensor, to compare with others': symbols compared as such would be guarded."""
    value = node.meta.get("val")
    return [_words(size) for size in value.shape] if isinstance(value, torch.Tensor) else None


def _words(size: int | torch.SymInt) -> str:
    """A size as text; that of a slice (`Min(2, n) - 1`) is a number where the trace holds for that number alone."""
    if isinstance(size, torch.SymInt) and not size.node.expr.is_Symbol and size.node.has_hint():
        number = size.node.hint
        return str(number) if statically_known_true(size == number) else str(size)
    return str(size)


def is_statistic(node: fx.Node) -> bool:
    """Whether the node is a batch norm's running mean or variance, which is written to its buffer."""
    if node.target is not operator.getitem or node.args[1] < 3:  # type: ignore[operator]
        return False
    return node.args[0].target in _WRITES_STATISTICS  # type: ignore[operator,union-attr]


def maker_of(node: fx.Node) -> fx.Node:
    """The operation whose result, or an item of it, the node is."""
    while node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    return node


def family_of(node: fx.Node) -> Family | None:
    """The family of the rule that a node's operation has in the registry; once classified, `NodeInfo.family` says it."""
    rule = find_rule(node.target)
    return rule.family if rule is not None else None


def operation_name(node: fx.Node) -> str:
    """The name of a node's operation, for reports: `aten.mm.default`, `getitem`."""
    target = node.target
    return str(target) if isinstance(target, OpOverload | str) else target.__name__


def is_float(value: Any) -> bool:
    """Whether a value is a tensor that can carry a signal."""
    return isinstance(value, torch.Tensor) and (value.dtype.is_floating_point or value.dtype.is_complex)


def takes_reward(value: Any) -> bool:
    """Whether a reward can be given to an output: a float tensor with at least one dimension, no loss."""
    return is_float(value) and value.dim() > 0


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module whose forward made the node ("" for the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
    path = path.replace("L['self'].", "").replace("L['self']", "")
    return path[6:] if path.startswith("model.") else ("" if path == "model" else path)


def source_line(node: fx.Node) -> str:
    """`file.py:line` of the user's code that made the node, or ""."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not lines:
        return ""
    parts = lines[-1].split(", ")
    file = parts[0][len("File ") :].strip('"')
    line = parts[1].replace("line ", "") if len(parts) > 1 else "?"
    return f"{file.rsplit('/', 1)[-1]}:{line}"
