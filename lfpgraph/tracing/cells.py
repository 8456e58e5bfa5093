"""Loops over recurrent cells that a model writes itself: where asked for, all steps become one operation (`recurrent`)."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear
from torch.utils._pytree import tree_leaves

from ..graph.graph import ancestors, shape_of
from ..rules.loops import LSTM, RECURRENT
from ..rules.recurrent import CELLS
from .recurrent import are_steps_one

__all__ = ["cells_kept_whole", "emit", "roll_up"]

_aten = torch.ops.aten
_NAMES: dict[Any, str] = {
    _aten.lstm_cell.default: "lstm",
    _aten.gru_cell.default: "gru",
    _aten.rnn_tanh_cell.default: "tanh",
    _aten.rnn_relu_cell.default: "relu",
}


def _step(
    cell: str, x: Tensor, state: Any, w_x: Tensor, w: Tensor, b_x: Tensor | None = None, b: Tensor | None = None
) -> Any:
    """One step of a cell, by the operations that torch makes of it."""
    before = state if cell == "lstm" else [state]
    after = CELLS[cell](linear(x, w_x, b_x), linear(before[0], w, b), *before)
    return after if cell == "lstm" else after[0]


_PARTS: dict[Any, Callable[..., Any]] = {op: partial(_step, cell) for op, cell in _NAMES.items()}


def cells_kept_whole() -> dict[Any, Callable[..., Any]]:
    """The cells that tracing keeps whole to its end, and what each is made of. Autocast casts inside of them: then none."""
    return {} if torch._C._is_any_autocast_enabled() else _PARTS


def roll_up(graph: fx.Graph) -> None:
    """Let cells of the same weights, each of which starts from the state that the one before it leaves, be one operation."""
    chains = _chains(graph)
    if not chains or not are_steps_one():
        return
    draws = [n for n in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]
    for chain in chains:
        if _may_run_at_once(chain, draws):
            _roll(graph, chain)
    for node in list(graph.nodes):
        if node.target is _aten.stack.default:
            _read_whole(graph, node)
    _sort(graph, draws)
    graph.eliminate_dead_code()


def _arguments(cell: fx.Node) -> list[Any]:
    """Input, states before, both weights and both biases."""
    names = [a.name for a in cell.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, cell.args)) | cell.kwargs
    x, state, *rest = (given.get(name) for name in names)
    return [x, list(state) if isinstance(state, list | tuple) else [state], *rest]


def _chains(graph: fx.Graph) -> list[list[fx.Node]]:
    """Cells that follow each other, in the order in which they run; none reads the state of an earlier one in another way."""
    found: dict[fx.Node, list[fx.Node]] = {}  # by their last cell
    apart: dict[fx.Node, set[fx.Node]] = {}  # by their first: nodes known to read none of them
    for node in graph.nodes:
        if node.target not in _NAMES:
            continue
        x, states, *weights = _arguments(node)
        before = _left_by(states)
        chain = found.get(before) if before is not None else None  # type: ignore[arg-type]
        if chain is not None and before is not None and node.target is before.target:
            x_before, _, *weights_before = _arguments(before)
            alike = weights == weights_before and _look(x) == _look(x_before)
            if alike and not _reads(x, set(chain), apart[chain[0]]):
                del found[before]
                found[node] = [*chain, node]
                continue
        found[node], apart[node] = [node], set()
    return [chain for chain in found.values() if len(chain) > 1]


def _look(node: fx.Node) -> Any:
    return shape_of(node), node.meta["val"].dtype


def _left_by(states: Sequence[fx.Node]) -> fx.Node | None:
    """The cell whose states these are."""
    if len(states) == 1:
        return states[0]
    (h, *of_h), (c, *of_c) = (s.args if s.target is operator.getitem else (None,) for s in states)
    return h if h is c and (of_h, of_c) == ([0], [1]) else None  # type: ignore[return-value]


def _reads(node: fx.Node, cells: set[fx.Node], apart: set[fx.Node]) -> bool:
    """Whether a node is made of what one of the cells leaves; if not, all that it is made of is added to `apart`."""
    made_of = ancestors([node], lambda n: n not in apart)
    if not cells.isdisjoint(made_of):
        return True
    apart |= made_of
    return False


def _may_run_at_once(chain: Sequence[fx.Node], draws: Sequence[fx.Node]) -> bool:
    """Whether all that goes into the cells can be there before the first runs, and random numbers be drawn in the same order."""
    cells = set(chain)
    ahead = ancestors([n for cell in chain for n in cell.all_input_nodes if _left_by_one_of(n) not in cells])
    if not cells.isdisjoint(ahead):
        return False
    last = max((i for i, draw in enumerate(draws) if draw in ahead), default=0)
    return all(cells.isdisjoint(ancestors([draw])) for draw in draws[:last])


def _left_by_one_of(node: fx.Node) -> Any:
    return node.args[0] if node.target is operator.getitem else node


def _roll(graph: fx.Graph, chain: Sequence[fx.Node]) -> None:
    """Replace cells by one operation. Nodes are not in order afterwards."""
    given = [_arguments(cell) for cell in chain]
    (_, states, w_x, w, b_x, b), cell = given[0], _NAMES[chain[0].target]
    with graph.inserting_before(chain[0]):
        make = partial(emit, graph, chain[0])
        xs = [x for x, *_ in given]
        whole = _whole(xs)
        x = make(_aten.stack.default, xs) if whole is None else _turned(make, *whole, 0)
        x = make(_aten.linear.default, x, w_x, b_x)
        made = make(LSTM, x, *states, w, b) if cell == "lstm" else make(RECURRENT, x, *states, w, b, cell)
        for i in range(len(states)):
            after = [[u for u in c.users if u.args[1] == i] if cell == "lstm" else [c] for c in chain]
            read = [t for t, nodes in enumerate(after) if any(node.users for node in nodes)]
            all_steps = make(operator.getitem, made, i)
            steps = make(_aten.unbind.int, all_steps) if len(read) > 2 else None
            for t in read:
                step = make(_aten.select.int, all_steps, 0, t) if steps is None else make(operator.getitem, steps, t)
                for node in after[t]:
                    node.replace_all_uses_with(step)
    for node in reversed(chain):
        for user in list(node.users):
            graph.erase_node(user)
        graph.erase_node(node)


def emit(graph: fx.Graph, like: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node, with the place in the model of another."""
    node = graph.call_function(op, args, kwargs)
    values = fx.node.map_arg(args, lambda n: n.meta["val"])
    mode = next(value.fake_mode for value in tree_leaves(values) if isinstance(value, FakeTensor))
    with torch.no_grad(), mode:
        node.meta = like.meta | {"val": op(*values, **kwargs)}
    return node


def _whole(parts: Sequence[fx.Node]) -> tuple[fx.Node, int] | None:
    """The tensor that has these parts along a dimension, one after the other, and the dimension."""
    found = [_part_of(part) for part in parts]
    if None in found or [t for _, _, t in found] != list(range(len(parts))):  # type: ignore[misc]
        return None
    if len({(source, dim) for source, dim, _ in found}) > 1:  # type: ignore[misc]
        return None
    source, dim, _ = found[0]  # type: ignore[misc]
    return (source, dim) if shape_of(source)[dim] == str(len(parts)) else None  # type: ignore[index]


def _part_of(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """Of what, in which dimension and at which place a node is a part."""
    given: Any = node.args
    if node.target is _aten.select.int:
        source, dim, place = given
    elif node.target is operator.getitem and given[0].target is _aten.unbind.int:
        (source, *dims), place = given[0].args, given[1]
        dim = dims[0] if dims else 0
    else:
        return None
    while source.target is _aten.slice.Tensor and shape_of(source) == shape_of(source.args[0]):
        source = source.args[0]  # as `x[:, t]` has it
    return source, dim % source.meta["val"].dim(), place


def _turned(make: Callable[..., fx.Node], source: fx.Node, dim: int, to: int) -> fx.Node:
    """A tensor with one of its dimensions moved to another place."""
    order = [d for d in range(source.meta["val"].dim()) if d != dim]
    order.insert(to, dim)
    return source if dim == to else make(_aten.permute.default, source, order)


def _read_whole(graph: fx.Graph, node: fx.Node) -> None:
    """Let what stacks all steps of one operation read them as they are; in memory of its own, since it may be written to."""
    parts, *dims = node.args
    whole = _whole(parts)  # type: ignore[arg-type]
    if whole is None or _left_by_one_of(whole[0]).target not in (LSTM, RECURRENT):
        return
    dim = (dims[0] if dims else 0) % node.meta["val"].dim()  # type: ignore[operator]
    with graph.inserting_before(node):
        make = partial(emit, graph, node)
        made = make(_aten.clone.default, _turned(make, *whole, dim), memory_format=torch.contiguous_format)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _sort(graph: fx.Graph, draws: Sequence[fx.Node]) -> None:
    """Put nodes in an order in which they can run, as near as can be to the one they have; draws stay in theirs."""
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    ahead = {node: set(node.all_input_nodes) for node in nodes}
    for before, draw in pairwise(draws):
        ahead[draw].add(before)
    after: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, sources in ahead.items():
        for n in sources:
            after[n].append(node)
    ready = [i for i, node in enumerate(nodes) if not ahead[node]]
    end = graph.output_node()
    while ready:
        node = nodes[heapq.heappop(ready)]
        for n in after[node]:
            ahead[n].discard(node)
            if not ahead[n]:
                heapq.heappush(ready, place[n])
        if node is not end:
            end.prepend(node)
