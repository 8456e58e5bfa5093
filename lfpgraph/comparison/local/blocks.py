"""A model's graph in blocks, each of which hands one activation to the next. No model is edited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from .block import Block, numbers_of, sizes_of

__all__ = ["Blocks", "ByMode", "Flow", "backward"]

log = logging.getLogger("lfpgraph")
_ROOT = "input"
_FIRST = -1  # the place of what depends on no parameter


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
            block.settle()
            block.late = any(n in order and _FIRST < place[n] < k and n is not entry for n in reads[k])
            block.parameters = [name for name, node in self.placeholder.items() if node in reads[k]]
            made.append(block)
        largest = max(numbers_of(end) for end in ends)
        for block in made[1:-1]:
            block.part(trained, largest)
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
        self._own: set[fx.Node] = set()
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
        return self._run(block, block.run(self.values, self._entry(block)))

    def _entry(self, block: Block) -> dict[fx.Node, Any]:
        return {block.entry: self.values.pop(block.entry)} if block.entry is not None else {}

    def _run(self, block: Block, local: dict[fx.Node, Any]) -> Tensor:
        self._keep(block, local)
        if block is self.blocks.blocks[-1]:
            with torch.no_grad():
                for name, value in self._updates:
                    self.state[name].copy_(value)
        return local[block.end]

    def learn(self, k: int, loss: Callable[[Tensor], Tensor]) -> None:
        """Run block k, let it learn by a loss of its activation, and hand that over to the next block.

        Where it pays (see `Block.part`), the activation is let go before the backward pass and made again behind it, and what
        nobody else holds is written over: so neither lies beside its own gradient, or beside the next activation.
        """
        block = self.blocks.blocks[k]
        entry, over = self._entry(block), block.entry in self._own
        if not block.behind:
            x = self._run(block, block.run(self.values, entry))
            self.hand_over(k, x)
            backward(loss(x))
            return
        with torch.no_grad():
            ready = block.run(self.values, entry, block.before, over)
        backward(loss(self._run(block, block.run(self.values, dict(ready), block.behind))))
        with torch.no_grad():
            self.values[block.end] = block.run(self.values, ready, block.behind)[block.end]
        self._own.add(block.end)

    def hand_over(self, k: int, activation: Tensor) -> None:
        """Give the next block what block k made, or something in its place."""
        self.values[self.blocks.blocks[k].end] = activation.detach()

    def apart(self, k: int, activation: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What block k makes of another activation, with other parameters, for which gradients may flow."""
        block = self.blocks.blocks[k]
        assert block.entry is not None
        given = {self.blocks.placeholder[name]: value for name, value in parameters.items()}
        return block.run(self.values, {block.entry: activation, **given})[block.end]


def backward(loss: Tensor) -> None:
    """The backward pass of a loss, if anything that it is of is trained."""
    if loss.requires_grad:
        loss.backward()


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


def _chosen(graph: OpGraph, output: fx.Node, matrices: set[fx.Node], early: bool) -> list[fx.Node]:
    """Of all points to cut at, from the input down, those that leave each block matrices; their value has the batch first.

    What depends on no parameter, such as a mask of floats that each layer reads, is the same for all blocks and crosses cuts.
    """
    flow, varying = (
        nx.DiGraph(),
        {n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"},
    )
    for node in graph.operations():
        if not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    active = [n for n in graph.graph.nodes if n in varying and n in graph.info and graph.info[n].kind == ACTIVE]
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
