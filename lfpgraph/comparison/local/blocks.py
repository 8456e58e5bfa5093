"""A model's graph in blocks, each of which hands one activation to the next. No model is edited."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ...errors import InputError
from ...graph.calls import arguments_of, input_tensors, state_tensors
from ...graph.cuts import cut_points
from ...graph.graph import ACTIVE, WEIGHT, OpGraph, ancestors, shape_of
from ...graph.sizes import Sizes
from ...registry import VIEW
from ...tracing.tracer import trace

__all__ = ["Block", "Blocks", "ByMode", "Flow", "signature", "sizes_of"]

log = logging.getLogger("lfpgraph")
_ROOT = "input"
_FIRST = -1  # the place of what depends on no parameter


class Block:
    """Some nodes of a graph, in order.

    Attributes:
        entry: the activation that the block before hands over; None for the first block.
        end: what it hands on.
        carried: further values of it that later blocks read.
        late: whether it reads such values of earlier blocks, so that it cannot run apart from them.
        parameters: names of the parameters that it reads.
    """

    def __init__(self, nodes: Sequence[fx.Node], entry: fx.Node | None, end: fx.Node) -> None:
        self.nodes, self.entry, self.end = list(nodes), entry, end
        self.carried: list[fx.Node] = []
        self.updates: list[tuple[str, fx.Node]] = []
        self.late = False
        self.parameters: list[str] = []
        self._dead: dict[fx.Node, list[fx.Node]] = {}

    def settle(self, kept: set[fx.Node]) -> None:
        """Find out after which node each value is needed no more; `kept` are needed when the block is over."""
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        own = {*self.nodes, *([self.entry] if self.entry is not None else [])}
        self._dead = {node: [] for node in self.nodes}
        for source, node in last.items():
            if source in own and source not in kept:
                self._dead[node].append(source)

    def run(self, values: Mapping[fx.Node, Any], given: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Run the block on values, of which `given` take precedence. What is needed no more is let go at once, of `given` too."""
        local = given
        for node in self.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: local[n] if n in local else values[n])
            local[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            del args, kwargs
            for source in self._dead[node]:
                del local[source]
        return local


class Blocks:
    """Cuts a model's trace at points that all reward passes.

    Every block has matrices of its own to train. What depends on no parameter is computed first, once; what depends on
    parameters alone, in each block that reads it.

    Args:
        inputs: of one batch, by which the model is traced in the mode that it is in.
        early: cut right behind a layer, in place of right before the next one: before the activation, not after it.

    Raises:
        InputError: there is no point to cut at with matrices on both sides.
    """

    def __init__(self, model: nn.Module, inputs: Any, early: bool = False) -> None:
        self.model, self.early = model, early
        args, kwargs = arguments_of(inputs, InputError)
        self.graph = graph = trace(model, args, kwargs)
        self.sizes, self.others = Sizes(graph), list[Blocks]()
        output = graph.rewarded_node
        name = type(model).__name__
        if output is None or graph.input_mutations or any(n.op == "get_attr" for n in graph.graph.nodes):
            raise InputError(
                f"{name} cannot be cut into blocks: it writes to its inputs, or holds branches or loops of torch"
            )
        self.placeholder = {p.target: n for n, p in self._placeholders("parameter")}
        matrices = {n for n, p in self._placeholders("parameter") if n.meta["val"].dim() > 1}
        cuts = _chosen(graph, output, matrices, early)
        if not cuts:
            raise InputError(
                f"{name} has no point to cut at with weights on both sides, so nothing can be learnt locally"
            )
        self.first, self.blocks = self._blocks([*cuts, output])
        log.info("%s: %d blocks, cut after %s", name, len(self.blocks), ", ".join(n.name for n in cuts))

    def _placeholders(self, kind: str) -> list[tuple[fx.Node, Any]]:
        pairs = zip(self.graph.placeholder_nodes, self.graph.placeholders)
        return [(n, p) for n, p in pairs if p.kind == kind]

    def _blocks(self, ends: list[fx.Node]) -> tuple[Block, list[Block]]:
        """What is computed first, and the blocks."""
        graph = self.graph
        written = dict(zip(graph.output_nodes, graph.mutations))
        trained = {n for n, _ in self._placeholders("parameter")}
        needed = ancestors([*ends, *(n for n in written if isinstance(n, fx.Node))])
        varying = set(trained)
        for node in graph.operations():
            if any(source in varying for source in node.all_input_nodes):
                varying.add(node)
        remade = {n for n in needed if n in varying and graph.info[n].kind == WEIGHT} - trained
        order = {n: None for n in graph.operations() if n in needed and n not in remade}
        place = {n: _FIRST for n in order if n not in varying}
        for k, end in enumerate(ends):
            for node in ancestors([end]):
                place.setdefault(node, k)
        for node in order:  # statistics that are written beside the way to the output
            if node not in place:
                place[node] = max((place[n] for n in node.all_input_nodes if n in place), default=len(ends) - 1)
        groups: dict[int, set[fx.Node]] = {k: {n for n in order if place[n] == k} for k in range(_FIRST, len(ends))}
        reads: dict[int, set[fx.Node]] = {}
        for k, own in groups.items():
            own |= ancestors([s for n in own for s in n.all_input_nodes], remade.__contains__)
            reads[k] = {s for n in own for s in n.all_input_nodes}
        made = []
        for k, (entry, end) in enumerate(zip([None, None, *ends], [ends[-1], *ends]), _FIRST):
            block = Block([n for n in graph.operations() if n in groups[k]], entry, end)
            later = {s for j, read in reads.items() if j > k for s in read} - {end}
            block.carried = [n for n in block.nodes if n in later and n not in remade]
            block.updates = [(written[n], n) for n in block.nodes if n in written]
            block.settle({end, *block.carried, *(n for _, n in block.updates)})
            block.late = any(n in order and _FIRST < place[n] < k and n is not entry for n in reads[k])
            block.parameters = [name for name, node in self.placeholder.items() if node in reads[k]]
            made.append(block)
        return made[0], made[1:]

    def __len__(self) -> int:
        return len(self.blocks)

    def flow(self, inputs: Any) -> Flow:
        """Begin a call. For sizes that the trace is not right for (a batch of one) the model is traced again, and cut alike.

        Raises:
            InputError: it cannot be cut alike.
        """
        args, kwargs = arguments_of(inputs, InputError)
        tensors = input_tensors(args, kwargs)
        for blocks in (self, *self.others):
            if blocks.sizes.accepts(tensors):
                return Flow(blocks, tensors)
        other = Blocks(self.model, inputs, self.early)
        if [block.parameters for block in other.blocks] != [block.parameters for block in self.blocks]:
            raise InputError(
                f"inputs of {[list(t.shape) for t in tensors]} lead another way through the model, with other blocks"
            )
        self.others.append(other)
        return Flow(other, tensors)

    def shapes(self) -> list[list[int]]:
        """The sizes of what each block hands on, without the batch."""
        return [sizes_of(block.end) for block in self.blocks]


class Flow:
    """The values of one call on their way through the blocks. What crosses from one to the next is detached."""

    def __init__(self, blocks: Blocks, tensors: Sequence[Tensor]) -> None:
        self.blocks = blocks
        self.state = state_tensors(blocks.model)
        graph = blocks.graph
        state = self.state | {
            name: self.state[name].clone() for name in graph.mutations
        }  # backward reads what was there before
        self.values: dict[fx.Node, Any] = dict(zip(graph.placeholder_nodes, graph.values(tensors, state)))
        self._updates: list[tuple[str, Tensor]] = []
        with torch.no_grad():
            self._keep(blocks.first, blocks.first.run(self.values, {}))

    def _keep(self, block: Block, local: Mapping[fx.Node, Any]) -> None:
        """Keep of a block's values what later ones read, and what buffers are to become when the call is over."""
        found = {n: local[n] for n in block.carried}
        self.values |= pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, found)
        self._updates += [(name, local[node].detach()) for name, node in block.updates]

    def run(self, k: int) -> Tensor:
        """The activation at the end of block k, of which the gradient reaches this block alone.

        Block k - 1 has run, and `hand_over` has given its activation. The last block writes the model's buffers.
        """
        block = self.blocks.blocks[k]
        given = {block.entry: self.values.pop(block.entry)} if block.entry is not None else {}
        local = block.run(self.values, given)
        self._keep(block, local)
        if k == len(self.blocks) - 1:
            with torch.no_grad():
                for name, value in self._updates:
                    self.state[name].copy_(value)
        return local[block.end]

    def hand_over(self, k: int, activation: Tensor) -> None:
        """Give the next block what block k made, or something in its place."""
        self.values[self.blocks.blocks[k].end] = activation.detach()

    def apart(self, k: int, activation: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What block k makes of another activation, with other parameters, for which gradients may flow."""
        block = self.blocks.blocks[k]
        assert block.entry is not None
        given = {self.blocks.placeholder[name]: value for name, value in parameters.items()}
        return block.run(self.values, {block.entry: activation, **given})[block.end]


class ByMode:
    """A model's blocks in the mode that it is in, training or eval, each traced once."""

    def __init__(self, model: nn.Module, early: bool) -> None:
        self.model, self.early = model, early
        self.known: dict[bool, Blocks] = {}

    def __call__(self, inputs: Any) -> Blocks:
        mode = self.model.training
        if mode not in self.known:
            self.known[mode] = Blocks(self.model, inputs, self.early)
            if len({len(blocks) for blocks in self.known.values()}) > 1:
                raise InputError(f"{type(self.model).__name__} has other points to cut at in eval mode")
        return self.known[mode]


def signature(block: Block) -> tuple[Any, ...]:
    """What two blocks have in common that differ in their weights alone."""
    return tuple((str(n.target), shape_of(n), len(n.all_input_nodes)) for n in block.nodes)


def sizes_of(node: fx.Node) -> list[int]:
    """The sizes of a node's tensor without the first, those of the example where they are open."""
    sizes = node.meta["val"].shape[1:]
    return [int(n.node.hint) if isinstance(n, torch.SymInt) else int(n) for n in sizes]


def _chosen(graph: OpGraph, output: fx.Node, matrices: set[fx.Node], early: bool) -> list[fx.Node]:
    """Of all points to cut at, from the input down, those that leave each block matrices; their value has the batch first."""
    flow = nx.DiGraph()
    active = [n for n in graph.graph.nodes if n in graph.info and graph.info[n].kind == ACTIVE]
    flow.add_node(_ROOT)
    for node in active:
        sources = [s for s in node.all_input_nodes if s in flow] or [_ROOT]
        flow.add_edges_from((source, node) for source in sources)
    rows = (shape_of(output) or [""])[:1]
    found: list[fx.Node] = []
    before: set[fx.Node] = set()
    pending: fx.Node | None = None
    for cut in reversed(cut_points(flow, _ROOT, output)):
        behind = ancestors([cut]) & matrices
        new = behind - before
        shape = shape_of(cut) or []
        if pending is not None and behind - (ancestors([pending]) & matrices):  # the next layer begins behind `pending`
            found.append(pending)
            before, pending = ancestors([pending]) & matrices, None
            new = behind - before
        fits = len(shape) > 1 and shape[:1] == rows and cut is not output and graph.info[cut].family is not VIEW
        if new and fits and (pending is None or not early):
            pending = cut
    if pending is not None and matrices - (ancestors([pending]) & matrices):
        found.append(pending)
    return found
