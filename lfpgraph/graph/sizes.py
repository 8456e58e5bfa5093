"""Which input sizes a graph is right for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import OpGraph

__all__ = ["Sizes"]

_MOST = 10_000  # answers kept


class Sizes:
    """The sizes that a graph was traced for, and what tracing assumed of those left open."""

    def __init__(self, graph: OpGraph) -> None:
        self.inputs = [n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input"]
        self.guards: list[Any] = []
        self.filled = [n for n in graph.graph.nodes if n.op == "call_function" and _refuses_nothing(n.target)]
        self.counts: list[Any] = []
        self.known: dict[tuple[Any, ...], bool] = {}
        self.watch()

    def watch(self) -> None:
        """Collect what tracing assumed of the symbolic sizes, up to now, as a test for inputs.

        Assumptions made by torch's shape functions of kernels (which memory layout is quick at this size) are left out:
        they change no value.
        """
        fake = next((n.meta["val"] for n in self.inputs if hasattr(n.meta.get("val"), "fake_mode")), None)
        if fake is not None and fake.fake_mode.shape_env is not None:
            shapes = fake.fake_mode.shape_env
            self.known.clear()
            self.guards = [shapes.replace(g.expr) for g in shapes.guards if "fake_impls.py" not in str(g.sloc)]
            counts = [n.args[0].meta["val"].numel() for n in self.filled]
            self.counts = [shapes.replace(c.node.expr) for c in counts if isinstance(c, torch.SymInt)]

    def accepts(self, tensors: Sequence[Tensor]) -> bool:
        """Whether inputs of these sizes may run on the graph."""
        return self.fit(tuple(tuple(t.shape) for t in tensors))

    def fit(self, sizes: tuple[tuple[int, ...], ...]) -> bool:
        """Whether inputs of these sizes may run on the graph."""
        if sizes not in self.known:
            if len(self.known) > _MOST:
                self.known.clear()
            self.known[sizes] = self._fits(sizes)
        return self.known[sizes]

    def _fits(self, sizes: tuple[tuple[int, ...], ...]) -> bool:
        bound: dict[Any, int] = {}
        compound: list[tuple[Any, int]] = []
        for node, shape in zip(self.inputs, sizes):
            for known, size in zip(node.meta["val"].shape, shape):
                if isinstance(known, int):
                    if known != size:
                        return False
                    continue
                expression = known.node.expr
                if not expression.is_Symbol:
                    compound.append((expression, size))
                elif bound.setdefault(expression, size) != size:
                    return False
        if any(expression.subs(bound) != size for expression, size in compound):
            return False
        if any(count.subs(bound) == 0 for count in self.counts):
            return False
        return all(guard.subs(bound) == True for guard in self.guards)  # noqa: E712  (sympy's true is no bool)


def _refuses_nothing(op: Any) -> bool:
    """Whether an operation's kernels need an element at least: eager code gives a batch norm of nothing another operation."""
    return isinstance(op, torch._ops.OpOverload) and any(kind in op.name() for kind in ("batch_norm", "instance_norm"))
