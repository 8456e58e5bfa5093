"""Writes in place of an exported graph as operations that return what is written.

torch's own way, functionalisation, traces the whole graph anew, which takes longer than the export. Here each write becomes
its operation without the underscore; what is written to a view goes back into what the view is of, as torch has it too, and
whoever reads that memory later reads it by a view made anew. What is not plain to see is left to torch.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ..cells import emit
from .inverse_views import TURNED, can_be_put_back, part_put_back, put_back
from .norms import is_norm, is_plain_norm, norm_without_writes

__all__ = [
    "MAY_RETURN_SELF", "detach_what_is_read", "is_mutable", "is_written", "memory_of", "put_after", "return_writes",
]  # fmt: skip

_aten = torch.ops.aten
MAY_RETURN_SELF = {
    _aten.contiguous.default, _aten.expand_as.default, _aten.to.device, _aten.to.dtype, _aten.to.dtype_layout,
    _aten.to.other, _aten.type_as.default,
}  # fmt: skip
_LEFT = ("resize_", "resize_as_", "set_")  # other memory


def return_writes(graph: fx.Graph) -> dict[fx.Node, fx.Node] | None:
    """Change the graph so that it writes nothing.

    Returns:
        For each placeholder that was written to what it holds in the end. None, and the graph writes what it did, where it
        has writes of another kind.
    """
    written = set().union(*(memory_of(node.args[0]) for node in graph.nodes if is_mutable(node.target)))
    for node in list(graph.nodes):
        if node.target is _aten.broadcast_tensors.default and memory_of(node) & written:
            _as_expanded(graph, node)
    memory = _Memory(graph)
    return memory.held() if memory.is_plain() else None


def _as_expanded(graph: fx.Graph, node: fx.Node) -> None:
    """Let what reads tensors made alike in shape read each as a view of its own."""
    sources: Any = node.args[0]
    for item in list(node.users):
        sizes = item.meta["val"].shape
        if item.target is operator.getitem and all(isinstance(size, int) for size in sizes):
            view = sources[item.args[1]]  # type: ignore[index]
            if view.meta["val"].shape != sizes:
                with graph.inserting_before(item):
                    view = emit(graph, item, _aten.expand.default, view, list(sizes))
            item.replace_all_uses_with(view)
            graph.erase_node(item)


class _Memory:
    """What is written to, and by which views of it.

    Attributes:
        root: of each value that lies in memory that is written to, the value that this memory was made for.
        source: of each view, the value that it is a view of; of each write, what is written to.
        writes: the nodes that write, to their first argument or, batch norms, to their statistics.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.writes = {n for n in graph.nodes if is_norm(n) or (is_mutable(n.target) and n.target not in TURNED)}
        self.root: dict[fx.Node, fx.Node] = {}
        self.source: dict[fx.Node, fx.Node] = {}
        self.current: dict[fx.Node, fx.Node] = {}  # by root: what it holds now
        self.times: dict[fx.Node, int] = {}  # by root: how often it was written to
        self.made: dict[fx.Node, tuple[int, fx.Node]] = {}  # by view: what shows it, and of which of those times
        self.changed: list[fx.Node] = []  # roots

    def is_plain(self) -> bool:
        """Whether all that is written to is known, and by which views, and what each write writes."""
        if not all(is_plain_norm(n) if is_norm(n) else _form(n.target) is not None for n in self.writes):
            return False
        return self._find() and all(self._is_known(n, to) for n in self.writes for to in _written_by(n))

    def _find(self) -> bool:
        """Fill in `root` and `source`; False where a value lies in such memory that is not known to be a view of it."""
        turned = [n for n in self.graph.nodes if n.target in TURNED]
        written = set().union(*(memory_of(to) for n in (*self.writes, *turned) for to in _written_by(n)))
        owner: dict[int, fx.Node] = {}
        for node in self.graph.nodes:
            mine = memory_of(node) & written
            if not mine:
                continue
            source: Any = node.args[0] if node.args else None
            if node.target is _aten.lift_fresh_copy.default:  # of a constant; the tracer itself made no copy
                self.root[node] = node
            elif isinstance(source, fx.Node) and source in self.root and mine & memory_of(source):
                if not isinstance(node.target, OpOverload) and node.target is not operator.getitem:
                    return False
                self.source[node], self.root[node] = source, self.root[source]
            elif isinstance(node.meta["val"], Tensor):
                (memory,) = mine
                if memory in owner:
                    return False
                owner[memory] = self.root[node] = node
        return True

    def _is_known(self, write: fx.Node, node: fx.Node) -> bool:
        """Whether what is written to a node can be put into what it is a view of."""
        if write.target is _aten.detach_.default:  # for no one else who reads that memory
            root = self.root.get(node)
            if root is None or self.root.get(write) is not root:
                return False
            alike = [other for other in self.root if self.root[other] is root]
            return all(other is root or other in self.writes for other in alike[: alike.index(write)])
        while node in self.source:
            if not self._is_same(node) and not can_be_put_back(node, self.source[node]):
                return False
            node = self.source[node]
        return node in self.root

    def _is_same(self, node: fx.Node) -> bool:
        """Whether a node is a write, or gives back its source as it is and is no view."""
        if node in self.writes:
            return True
        mine, given = node.meta["val"], self.source[node].meta["val"]
        if not (isinstance(mine, Tensor) and isinstance(given, Tensor)):
            return False
        is_view = node.target is _aten.detach.default or can_be_put_back(node, self.source[node])
        if is_view and node.target is not _aten.flatten.using_ints:  # which gives back what has one dimension
            return False
        return mine.dtype == given.dtype and str((mine.shape, mine.stride())) == str((given.shape, given.stride()))

    def held(self) -> dict[fx.Node, fx.Node]:
        """Take the writes away; of each placeholder that was written to what it holds in the end."""
        nodes = list(self.graph.nodes)
        for node in nodes:
            to = _written_by(node) if node in self.writes else []
            if not self.root.keys().isdisjoint(node.all_input_nodes):
                with self.graph.inserting_before(node):
                    node.args = fx.node.map_arg(node.args, self._now)
                    node.kwargs = fx.node.map_arg(node.kwargs, self._now)
            with self.graph.inserting_before(node):
                if is_norm(node):
                    result, after = norm_without_writes(self.graph, node)
                    self.root[node], self.current[node] = node, result
                    for statistic, value in zip(to, after):
                        self._put(statistic, value)
                elif to:
                    self._put(to[0], self._value(node))
                elif node.target in TURNED:
                    new = emit(self.graph, node, TURNED[node.target], *node.args)
                    self.made[node] = self.times.get(self.root[node], 0), new
                elif node in self.source:
                    self.made[node] = self.times.get(self.root[node], 0), node
        for node in reversed(nodes):
            if node in self.writes or node.target in TURNED:
                self.graph.erase_node(node)
        return {n: self.current[n] for n in nodes if n.op == "placeholder" and n in self.changed}

    def _value(self, node: fx.Node) -> fx.Node:
        """What a write writes, in the dtype of what it is written to."""
        value = emit(self.graph, node, _form(node.target), *node.args, **node.kwargs)
        dtype = node.meta["val"].dtype
        if value.meta["val"].dtype == dtype:
            return value
        return emit(self.graph, node, _aten._to_copy.default, value, dtype=dtype)

    def _now(self, node: fx.Node) -> fx.Node:
        """What a value is by now."""
        root = self.root.get(node)
        if root is None:
            return node
        if node is root:
            return self.current.get(node, node)
        time = self.times.get(root, 0)
        if node not in self.made or self.made[node][0] != time:
            new = self._now(self.source[node])
            if not self._is_same(node):
                new = emit(self.graph, node, TURNED.get(node.target, node.target), new, *node.args[1:], **node.kwargs)
            self.made[node] = time, new
        return self.made[node][1]

    def _put(self, node: fx.Node, value: fx.Node) -> None:
        """Let the memory of a node hold a value there."""
        while node in self.source:
            source = self.source[node]
            if not self._is_same(node):
                if node.target is operator.getitem:
                    parts, source = source, self.source[source]
                    value = part_put_back(self.graph, node, parts, self._now(source), value)
                else:
                    value = put_back(self.graph, node, source, self._now(source), value)
            node = source
        self.current[node] = value
        self.times[node] = self.times.get(node, 0) + 1
        if node not in self.changed:
            self.changed.append(node)


def memory_of(node: fx.Node) -> set[int]:
    values = tree_leaves(node.meta.get("val")) if node.op != "output" else ()
    return {x.untyped_storage()._cdata for x in values if isinstance(x, Tensor) and x.layout is torch.strided}


def is_mutable(op: Any) -> bool:
    return isinstance(op, OpOverload) and op._schema.is_mutable


def _written_by(node: fx.Node) -> list[Any]:
    """The arguments that a node writes to."""
    if not is_norm(node):
        return [node.args[0]]
    return [statistic for statistic in node.args[3:5] if statistic is not None] if node.args[5] else []


@functools.cache
def _form(op: OpOverload) -> OpOverload | None:
    """The operation that returns what another writes to its first argument; None if there is none, or what it is is drawn."""
    name, overload = op._schema.name.removeprefix("aten::"), op._overloadname
    if op.namespace != "aten" or not name.endswith("_") or name.startswith("_") or name in _LEFT or "dropout" in name:
        return None
    writes = [a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments]
    packet = getattr(_aten, name[:-1], None)
    if packet is None or any(writes[1:]) or torch.Tag.nondeterministic_seeded in op.tags:
        return None
    named = [overload, *packet.overloads()]  # `pow_.Scalar` is `pow.Tensor_Scalar`; `pow.Scalar` is another operation
    forms = [getattr(packet, other) for other in named if other in packet.overloads()]
    alike = (form for form in forms if _arguments(form) == _arguments(op) and len(form._schema.returns) == 1)
    return next((form for form in alike if not form._schema.is_mutable), None)


def _arguments(op: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


def detach_what_is_read(body: fx.GraphModule) -> None:
    """Where a no_grad region writes to memory from outside it, detach what it reads: else reward would pass by the memory."""
    arguments = [n for n in body.graph.nodes if n.op == "placeholder"]
    written = [n for n in arguments if is_written(n)]
    for node in arguments if written else ():
        value = node.meta.get("val")
        if node not in written and isinstance(value, Tensor) and value.is_floating_point():
            put_after(body.graph, node, _aten.detach.default)
    if written:
        body.recompile()


def is_written(node: fx.Node) -> bool:
    """Whether something writes to a tensor, or to a view of it."""
    for user in node.users:
        op = user.target
        if not isinstance(op, OpOverload) or not user.args or user.args[0] is not node:
            continue
        if op._schema.is_mutable or ((op.is_view or op in MAY_RETURN_SELF) and is_written(user)):
            return True
    return False


def put_after(graph: fx.Graph, node: fx.Node, op: OpOverload) -> None:
    """Let all users of a node read an operation on it instead."""
    with graph.inserting_after(node):
        made = graph.call_function(op, (node,))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda other: other is not made)
