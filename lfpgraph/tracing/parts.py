"""Operations of an exported graph taken apart, each kind once: a loop over time holds the same one hundreds of times.

torch's own way, `run_decompositions`, runs through all of them one by one. What is changed here is not compiled again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._export.utils import _get_decomp_for_cia
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .cells import cells_kept_whole
from .rewrite import parts_of, region_body, takes_tensors
from .written.writes import return_writes

__all__ = ["is_functional", "take_apart", "take_apart_all"]

_aten = torch.ops.aten


def take_apart(module: fx.GraphModule, parts: Mapping[Any, Callable[..., Any]]) -> bool:
    """Replace operations by what they are made of, as far down as to operations that have a rule.

    Args:
        parts: the operations, and what computes each of them by others.

    Returns:
        Whether it was done. It is not, and nothing is changed, where one of them is made of operations that write in place.
    """
    known: dict[Any, fx.GraphModule] = {}
    found = []
    for node in module.graph.nodes:
        if node.target in parts:
            leaves, spec = tree_flatten((node.args, node.kwargs))
            key = node.target, spec, *(_look(leaf) for leaf in leaves)
            made_of = known.get(key) or _trace(parts[node.target], leaves, spec)
            if made_of is None:
                return False
            known[key] = made_of
            found.append((node, made_of))
    sizes = _Sizes(module.graph)
    for node, made_of in found:
        given = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]
        _paste(sizes, node, made_of, given, node.meta)
    return True


def take_apart_all(module: fx.GraphModule) -> list[fx.Node] | None:
    """The same of all operations without a rule, and of regions of no_grad; writes in place become operations.

    Returns:
        The placeholders that are written to; what they hold in the end becomes the first outputs. None, and the graph
        computes what it did, where there are writes that only torch can take away.
    """
    ours = not torch._C._is_any_autocast_enabled()  # it casts inside of what is here
    # torch takes tensors apart, too, that are made of others: quantised weights
    ours = ours and not any(is_traceable_wrapper_subclass(node.meta.get("val")) for node in module.graph.nodes)
    written = return_writes(module.graph) if ours else None
    if written is None:
        return None
    end = module.graph.output_node()
    end.args = ((*written.values(), *end.args[0]),)  # type: ignore[misc]  # first: they may be taken apart, too
    if _are_taken_apart(module):
        return list(written)
    results: Any = end.args[0]
    end.args = (results[len(written) :],)
    for node, value in zip(written, results):
        with module.graph.inserting_before(end):
            module.graph.call_function(_aten.copy_.default, (node, value)).meta = dict(value.meta)
    return None


def _are_taken_apart(module: fx.GraphModule) -> bool:
    """Take apart what has no rule, and open regions of no_grad; False, and nothing is changed, where anything writes."""
    regions = {node: body for node in module.graph.nodes if (body := region_body(module, node)) is not None}
    graphs = [module.graph, *(body.graph for body in regions.values())]
    known = {*regions, *(node.args[1] for node in regions)}
    if not all(is_functional(graph, known) for graph in graphs):
        return False
    parts = {op: made_of for graph in graphs for op, made_of in _without_rule(graph).items()}
    if not all(take_apart(body, parts) for body in (*regions.values(), module)):
        return False
    for node, body in regions.items():
        _paste(_Sizes(module.graph), node, body, node.args[2:])
    return True


def _without_rule(graph: fx.Graph) -> dict[Any, Callable[..., Any]]:
    """The operations on tensors of a graph that are to be taken apart, and what each is made of."""
    ops = {n.target for n in graph.nodes if isinstance(n.target, OpOverload) and _is_tensor(n.meta.get("val"))}
    ops -= cells_kept_whole().keys()
    return {op: of for op in ops if takes_tensors(op) and (of := _of_view(op) or parts_of(op)) is not None}


def _of_view(op: OpOverload) -> Callable[..., Any] | None:
    """What a composite operation does that may return its argument or a view of it, which its name does not say.

    It has a rule for live runs. Dropout has one, too; here its mask is a result, so that it can be kept.
    """
    if op is _aten.dropout.default:
        return lambda x, p, train: torch.native_dropout(x, p, train)[0]
    composite = op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    views = any(result.alias_info is not None for result in op._schema.returns)
    return _get_decomp_for_cia(op) if composite and views and op is not _aten.reshape.default else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_is_tensor, value)))


def is_functional(graph: fx.Graph, known: Container[fx.Node] = ()) -> bool:
    """Whether a graph holds, beside nodes that are known, operations and sizes alone, and none writes in place."""
    for node in graph.nodes:
        op = node.target
        if node in known:
            continue
        if node.op == "call_function" and isinstance(op, OpOverload):
            if op._schema.is_mutable or op in (_aten.batch_norm.default, _aten._batch_norm_impl_index.default):
                return False
            if op is _aten.instance_norm.default and node.args[3] is not None:
                return False  # it keeps statistics
        elif node.op == "call_function" and not (op is operator.getitem or _is_size(node)):
            return False
        elif node.op == "get_attr":
            return False
    return True


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


class _Sizes:
    """Nodes that are open sizes of a graph's arguments: an activation asked for its size would have one reader more."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph, self.made = graph, dict[Any, fx.Node]()
        self.arguments = [node for node in graph.nodes if node.op == "placeholder"]
        self.places: dict[Any, tuple[fx.Node, int]] = {}
        for node in self.arguments:
            value = node.meta["val"]
            for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if isinstance(size, torch.SymInt):
                    self.places.setdefault(size.node.expr, (node, dim))

    def find(self, size: Any) -> fx.Node | None:
        """The node of a size, None where no argument has it."""
        expr = size.node.expr if isinstance(size, torch.SymInt) else None
        if expr in self.places and expr not in self.made:
            node, dim = self.places[expr]
            with self.graph.inserting_after(self.arguments[-1]):
                self.made[expr] = self.graph.call_function(_aten.sym_size.int, (node, dim))
            self.made[expr].meta["val"] = node.meta["val"].shape[dim]
        return self.made.get(expr)


def _look(leaf: Any) -> Any:
    """What a trace can see of an argument."""
    value = leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf
    if isinstance(value, Tensor):
        return value.dtype, value.device, str(value.shape), str(value.stride()), str(value.storage_offset())
    return type(value), repr(value)


def _trace(parts: Callable[..., Any], leaves: list[Any], spec: Any) -> fx.GraphModule | None:
    """The graph of a function whose placeholders are the nodes among the arguments; None where it writes in place."""
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]

    def run(*given: Any) -> Any:
        filled = list(leaves)
        for place, value in zip(places, given):
            filled[place] = value
        args, kwargs = tree_unflatten(filled, spec)
        with torch._C.DisableTorchFunction():  # by which the tracer would take a composite operation for whole again
            return parts(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    values = [leaves[place].meta["val"] for place in places]
    with next(value.fake_mode for value in values if isinstance(value, FakeTensor)):
        own = [value.detach() if isinstance(value, Tensor) else value for value in values]  # told apart by identity
        traced = make_fx(run, tracing_mode="real", pre_dispatch=True)(*own)
    return traced if is_functional(traced.graph) and take_apart(traced, _without_rule(traced.graph)) else None


def _plain(value: Any) -> Any:
    """An argument whose lists may be changed, as some of torch's own functions do: those of a graph may not."""
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _paste(
    sizes: _Sizes, node: fx.Node, made_of: fx.GraphModule, given: Sequence[Any], place: Mapping[str, Any] | None = None
) -> None:
    """Put a copy of a graph in place of a node; `place` is known of each of its nodes in place of what they say."""
    graph = sizes.graph
    placeholders = [inner for inner in made_of.graph.nodes if inner.op == "placeholder"]
    here: dict[fx.Node, Any] = dict(zip(placeholders, given))
    with graph.inserting_before(node):
        for inner in made_of.graph.nodes:
            if inner.target is _aten.sym_size.int and (size := sizes.find(inner.meta["val"])) is not None:
                here[inner] = size
            elif inner.op == "call_function":
                here[inner] = graph.node_copy(inner, here.__getitem__)
                here[inner].meta = dict(inner.meta if place is None else place) | {"val": inner.meta.get("val")}
    results = fx.node.map_arg(made_of.graph.output_node().args[0], here.__getitem__)
    if isinstance(results, list | tuple):
        for item in list(node.users):
            item.replace_all_uses_with(results[item.args[1]])  # type: ignore[arg-type,index]
            graph.erase_node(item)
    else:
        node.replace_all_uses_with(results)  # type: ignore[arg-type]
    graph.erase_node(node)
