"""A program of a wrapped model, and the calls it is right for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import Program
from .trace import OpGraph

__all__ = ["Entry", "key_of"]


class Entry:
    """A program and the sizes it is right for."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.program: Program | None = None
        self.inputs = [n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input"]
        self.guards: list[Any] = []
        self.known: dict[tuple[Any, ...], bool] = {}

    def values(self, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> list[Any]:
        """The placeholders' values for this call."""
        result: list[Any] = []
        for placeholder in self.graph.placeholders:
            if placeholder.kind == "input":
                result.append(tensors[placeholder.target])
            elif placeholder.kind == "constant":
                result.append(self.graph.constants[placeholder.target])
            else:
                result.append(state[placeholder.target])
        return result

    def watch_sizes(self) -> None:
        """Collect what the trace assumed of the symbolic sizes, as a test for later inputs.

        Assumptions made by torch's shape functions of kernels (which memory layout is quick at this size) are left out:
        they change no value.
        """
        fake = next((n.meta["val"] for n in self.inputs if hasattr(n.meta.get("val"), "fake_mode")), None)
        if fake is not None and fake.fake_mode.shape_env is not None:
            shapes = fake.fake_mode.shape_env
            self.guards = [shapes.replace(g.expr) for g in shapes.guards if "fake_impls.py" not in str(g.sloc)]

    def accepts(self, tensors: Sequence[Tensor]) -> bool:
        """Whether inputs of these sizes may run on the program."""
        sizes = tuple(tuple(t.shape) for t in tensors)
        if sizes not in self.known:
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
        return all(guard.subs(bound) == True for guard in self.guards)  # noqa: E712  (sympy's true is no bool)


def key_of(modes: tuple[bool, ...], leaves: Sequence[Any], spec: Any, state: Mapping[str, Tensor]) -> Any:
    """What a program depends on, sizes apart."""
    described = tuple(
        (leaf.dtype, leaf.dim(), leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else _static(leaf)
        for leaf in leaves
    )
    params = tuple((name, t.dtype, t.device, t.requires_grad, t.shape) for name, t in state.items())
    casts = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))
    return (str(spec), described, modes, params, casts)


def _static(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, bool | int | float | str) else repr(leaf)
