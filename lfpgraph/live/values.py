"""The values of a run by number: what each is, and which tensor or gradient edge it is known by.

A value that autograd follows is known by its gradient edge (the autograd node that made it, and which of its results it
is), so what is written in place, or through a view, is a new value as it is for autograd. Others are known by their tensor.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointFunction

from ..graph.calls import alias_among
from .interception import paused
from .notes import (
    Leaf,
    NameLeaf,
    Unrecorded,
    alias_of,
    gives_feedback,
    hands_on,
    has_changed,
    is_older,
    is_over,
    storage_of,
    tensors_among,
    version_of,
)  # fmt: skip
from .operations import OWN_BACKWARD, OWN_VIEW

__all__ = ["Values"]

_VIEWS = ("CopySlices", "AsStrided", "Expand", "Alias")  # autograd's nodes of views, with all "View..."
_MOST = 100_000  # autograd nodes looked through to find where an unknown value comes from


class Values:
    """Numbers for the values of one run.

    Args:
        name_leaf: says of a tensor that no operation made what it is, as (kind, name).

    Attributes:
        shapes, dtypes, follows, kept: of each value, by number: its size and type, whether autograd follows it, and a
            detached copy where somebody is going to look at it.
        edges, edge_of: numbers by gradient edge, and the other way round; `also`: further edges of a value; `covering`:
            autograd nodes of writes that leave nothing of what was there, to which their first edge leads; `undone`: views of
            which another gives back what they are of.
        leaves: what the run found, in order. seen: of each value that autograd follows, the tensor, as long as somebody holds it.
        begun: values that the run has made and that autograd follows from then on (`requires_grad_`).
        own: custom backward functions that were met; own_nodes: their autograd nodes; checkpoints: those that run a part again.
        own_reads: parameters that custom functions read themselves: number, autograd node and its slot.
    """

    def __init__(self, name_leaf: NameLeaf) -> None:
        self.name_leaf = name_leaf
        self.shapes, self.dtypes, self.follows = list[torch.Size](), list[torch.dtype](), list[bool]()
        self.kept: list[Tensor | None] = []
        self.edges: dict[tuple[Any, int], int] = {}
        self.edge_of: dict[int, tuple[Any, int]] = {}
        self.also: dict[int, list[tuple[Any, int]]] = defaultdict(list)
        self.covering, self.undone = set[Any](), set[int]()
        self.leaves, self.begun = list[Leaf](), list[int]()
        self.seen: dict[int, weakref.ref[Tensor]] = {}
        self.own, self.own_nodes, self.checkpoints = list[str](), list[Any](), list[Any]()
        self.own_reads: list[tuple[int, Any, int]] = []
        self.started = torch._C._autograd._get_sequence_nr()  # nodes with a smaller number are older than the run
        self.aliases: dict[int, Tensor] = {}  # the one alias that a run takes each parameter through
        self._lying: list[tuple[Tensor, int]] = []  # whose memory must not be written to unseen; numbers
        self._looked_at: dict[int, list[weakref.ref[Tensor]]] = {}
        self._ids: dict[int, int] = {}
        self._versions: dict[int, int] = {}  # how often the memory of these had been written to
        self.writers: dict[int, int] = {}  # by storage: what was last written there, where nothing follows it
        self._alive: list[Any] = []
        self.unrecorded = Unrecorded()
        self.wanted: Container[int] | None = None  # values that are going to be looked at; None for all

    def look(self, number: int) -> Any:
        """What a plan may depend on of a value, sizes apart."""
        return self.dtypes[number], len(self.shapes[number]), self.follows[number]

    def number(self, x: Tensor) -> int:
        """The number of a tensor's present value; a new leaf where the run has not met it."""
        if x.requires_grad and (node := x.grad_fn) is not None:
            edge = (node, x.output_nr)
            found = self.edges.get(edge)
            return self._unknown(x, edge) if found is None else found
        found = self._ids.get(id(x))
        if found is None or (found in self.aliases and has_changed(x, self.aliases[found])):
            return self._leaf(x)
        if not self.follows[found]:
            if x.requires_grad:
                if self.name_leaf(x)[0] == "parameter":  # met while it was frozen
                    return self._leaf(x)
                self.begun.append(found)
                self._begin(x, found)
            elif version_of(x) != self._versions[id(x)]:
                return self._written_to(x, found)
        return found

    def _written_to(self, x: Tensor, before: int) -> int:
        """The number of what a tensor that nothing follows holds since its memory was written to through another one."""
        writer = self.writers.get(storage_of(x))
        sources = [before] if writer is None or writer == before else [before, writer]
        self._versions[id(x)] = version_of(x)  # `made_unseen` is not to find it changed once more
        return self.made_unseen(OWN_VIEW, sources, x)

    def known(self, x: Tensor) -> int | None:
        """The number of a tensor's present value if the run has met it."""
        if x.requires_grad and x.grad_fn is not None:
            return self.edges.get((x.grad_fn, x.output_nr))
        return self._ids.get(id(x))

    def is_held(self, number: int) -> bool:
        """Whether somebody still holds a tensor of this value: one that was written to since, or its base, has another."""
        x = self.seen[number]()
        return x is not None and self.known(x) == number

    def _new(self, x: Tensor) -> int:
        number = len(self.shapes)
        try:
            self.shapes.append(x.shape)
        except RuntimeError:  # a nested tensor of the strided kind has none
            self.shapes.append((None,))  # type: ignore[arg-type]
        self.dtypes.append(x.dtype)
        follows = x.requires_grad
        self.follows.append(follows)
        self.kept.append(None)
        if follows and (node := x.grad_fn) is not None:
            self.edge_of[number] = edge = (node, x.output_nr)
            self.edges[edge] = number
            self.seen[number] = weakref.ref(x)
        else:
            self._known_by_identity(x, number)
        return number

    def equate(self, x: Tensor, number: int) -> None:
        """Let a tensor hold a value that another one holds as well; the value is known by both."""
        if x.requires_grad and (node := x.grad_fn) is not None:
            self.edges[node, x.output_nr] = number
            self.also[number].append((node, x.output_nr))
        else:
            self._known_by_identity(x, number)

    def _known_by_identity(self, x: Tensor, number: int) -> None:
        self._ids[id(x)], self._versions[id(x)] = number, version_of(x)
        self._alive.append(x)  # its identity must not pass on to another tensor

    def forget(self, x: Tensor) -> None:
        """Take a tensor that nothing follows for one not met yet."""
        self._ids.pop(id(x), None)

    def places(self, number: int) -> list[tuple[Any, int]]:
        """The gradient edges by which a value is known."""
        own = self.edge_of.get(number)
        return [*self.also.get(number, ())] if own is None else [own, *self.also.get(number, ())]

    def _leaf(self, x: Tensor, alias: Tensor | None = None) -> int:
        if torch._C._functorch.is_dead_tensor_wrapper(x):  # type: ignore[attr-defined]
            number = self.number(torch._C._functorch.unwrap_if_dead(x))
            self.equate(x, number)
            return number
        kind, name = self.name_leaf(x)
        if kind == "constant" and (met := alias_among(x, self._alive)) is not None:  # `x.as_subclass(...)`
            self.equate(x, number := self.number(met))
            return number
        if kind == "constant" and x in self.unrecorded:
            kind, name = "unrecorded", tuple(sorted(self.unrecorded.made_of(x)))
        number, held = self._new(x), x if alias is None else alias  # which may have other memory by now
        self.shapes[number] = held.shape
        self.leaves.append(Leaf(number, kind, name, x))
        if self.wanted is None or number in self.wanted:
            self.kept[number] = held.detach()
        self._lying.append((held, number))
        if not self.follows[number]:
            return number
        if kind != "parameter":
            if x.grad_fn is None:
                self._begin(x, number)
        else:
            self.aliases[number] = alias = alias_of(x) if alias is None else alias
            self.edge_of[number] = edge = (alias.grad_fn, alias.output_nr)
            self.edges[edge] = number
        return number

    def _begin(self, x: Tensor, number: int) -> None:
        """Note where autograd's nodes hand the signal of a value that it follows from here on."""
        edge = alias_of(x).grad_fn.next_functions[0]  # type: ignore[union-attr]
        self.follows[number] = True
        self.edges[edge] = number
        self.edge_of[number] = edge

    def _sources_of(self, x: Tensor) -> frozenset[int]:
        """What a float tensor holds that may be an activation: the number of a value; -1 of an input that was not met yet."""
        try:
            number = self.known(x)
        except RuntimeError:  # a view of a leaf, made under no_grad, once written to: torch does not say what made it
            return frozenset()
        if number is None:
            return frozenset({-1}) if self.name_leaf(x)[0] == "input" else frozenset()
        kinds = [leaf.kind for leaf in self.leaves if leaf.value == number]
        return frozenset({number}) if not kinds or kinds[0] in ("input", "unrecorded") else frozenset()

    def _unknown(self, x: Tensor, edge: tuple[Any, int]) -> int:
        """A value that no recorded operation made: by a custom function, through a view, or outside of the run."""
        if is_older(edge[0], self.started) or is_over(x):
            return self._leaf(x)
        for given in self.name_leaf.givens():
            if self.known(given) is None:
                self._leaf(given)
        if hands_on(edge[0]):
            source = edge[0].next_functions[edge[1]]
            number = self.edges.get(source)
            if number is None and not hasattr(source[0], "variable"):
                return self._unknown(x, source)
            if number is not None:
                self.equate(x, number)
                return number
        found, names, seen = list[int](), set[str](), set[Any]()
        stack = [edge[0]]
        while stack and len(seen) < _MOST:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            names.add(node.name().rpartition("::")[2])
            function = getattr(node, "_forward_cls", None)
            self.own_nodes += [] if function is None else [node]
            self.checkpoints += [node] if function is CheckpointFunction else []
            for slot, (source, index) in enumerate(node.next_functions):
                if source is None or (slot == 0 and node in self.covering):
                    continue
                number = self.edges.get((source, index))
                if number is None and hasattr(source, "variable"):
                    if gives_feedback(node):
                        continue
                    number = self._own_leaf(source, node, slot)
                if number is None and is_older(source, self.started):
                    continue
                if number is None:
                    stack.append(source)
                elif number not in found:
                    found.append(number)
        self._alive.append(seen)
        if not found:
            return self._leaf(x)
        found += [n for n in dict.fromkeys(self._inputs_of(seen)) if n not in found]
        is_view = all(name.startswith(_VIEWS) or "View" in name for name in names)
        if not is_view and not gives_feedback(edge[0]):
            self.own.append(edge[0].name())
        return self.made_unseen(OWN_VIEW if is_view else OWN_BACKWARD, found, x)

    def _look_at(self, args: tuple[Any, ...]) -> None:
        """Note what an operation reads that is not recorded: inside a custom function, under no_grad, under vmap."""
        for x in tensors_among(args, {}):
            if not x.requires_grad:
                while torch._C._functorch.is_functorch_wrapped_tensor(x):
                    x = torch._C._functorch.get_unwrapped(x)
                now = torch._C._autograd._get_sequence_nr()
                self._looked_at.setdefault(now, []).append(weakref.ref(x))

    def _inputs_of(self, nodes: set[Any]) -> list[int]:
        """Values that autograd does not follow and that were read while these nodes were made: inputs, or what may come of them.

        A function of parameters and an input is an activation, one of parameters alone a weight.
        """
        found: list[int] = []
        for node in nodes:
            if hasattr(node, "variable"):
                continue
            made = node._sequence_nr()
            for ref in self._looked_at.get(made, []) + self._looked_at.get(made + 1, []):
                if (x := ref()) is None or x.requires_grad:
                    continue
                if self.known(x) is not None or self.name_leaf(x)[0] == "input" or x in self.unrecorded:
                    found.append(self.number(x))
        return found

    def made_unseen(self, op: OpOverload, sources: list[int], x: Tensor) -> int:
        """Note a step that no operation was seen to make; the number of its result."""
        raise NotImplementedError

    def _own_leaf(self, source: Any, node: Any, slot: int) -> int | None:
        """What a custom function reads itself: a parameter, for which what its backward gives is scaled as all feedback is.

        Its memory may have been taken away since (DeepSpeed leaves none between forward and backward): autograd knows its shape.
        """
        with paused():
            number = self.number(source.variable)
        self.shapes[number] = torch.Size(source._input_metadata[0].shape)
        is_parameter = any(leaf.kind == "parameter" for leaf in self.leaves if leaf.value == number)
        if is_parameter and (number, node, slot) not in self.own_reads:  # one function, several results
            self.own_reads.append((number, node, slot))
        return number
