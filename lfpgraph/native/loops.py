"""An elementwise formula or graph as one loop in C.

By torch's operations, twenty small ones on a few thousand numbers cost what it takes to start them and to carry what they
make through memory. As one loop they are a single pass. Who asks for a loop has another way for where there is none: no
compiler, an operation that is in no table of `operations`, other numbers than float32 and float64.

On a GPU the same lines are a kernel for each step (`steps`).
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .compiler import DTYPES, library
from .operations import BY_ENTRY, BY_ROW, KNOWN, Origin, UnknownOperation, Value, apart, literal
from .products import PRODUCT, Product, Weights
from .steps import StepKernel, kernel_of, source_of

__all__ = ["Loop", "Running", "loop_of_formula", "loop_of_graph", "place"]

aten = torch.ops.aten
log = logging.getLogger("lfpgraph")
_Values = list[Value]
_LOOP = """
void run(const Place *places, int64_t rows, int64_t width, int64_t t) {{
  for (int64_t r = 0; r < rows; r++) {{
    {pointers}
    #pragma omp simd
    for (int64_t j = 0; j < width; j++) {{
      {lines}
    }}
  }}
}}

void sweep(
    const Place *places, int64_t rows, int64_t width, int64_t ahead, int64_t t, int64_t end, const Product *p, Weights *w) {{
  for (int64_t by = t < end ? 1 : -1; t != end; t += by) {{
    if (ahead) multiply(p, rows, t);
    run(places, rows, width, t);
    if (!ahead) multiply(p, rows, t);
    if (w && t % w->steps_at_once == 0) weigh(w, rows, t);
  }}
}}
"""


class Loop:
    """Compiled C. Its tensors are [steps, rows, n * width]: the inputs, then the outputs that are not None.

    Attributes:
        has: whether an output is a tensor.
        twice: whether the second output is the same as the first; both may be given one place.
        panel: how many columns of a `Product` are worked out at once.
    """

    def __init__(self, compiled: Any, has: list[bool], twice: bool) -> None:
        self._run, self._sweep, self.has, self.twice = compiled.run, compiled.sweep, has, twice
        self._run.argtypes, self._run.restype = (ctypes.c_void_p, *[ctypes.c_int64] * 3), None
        self._sweep.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 2)
        self._sweep.restype, compiled.panel.restype = None, ctypes.c_int64
        self.panel: int = compiled.panel()

    def on(self, places: Sequence[tuple[int, int, int]], rows: int, width: int) -> Running:
        """What does a step, given its number; on tensors that are given by their `place`."""
        return Running(self._run, self._sweep, places, rows, width)


class Running:
    """A loop and its tensors; called with the number of a step."""

    def __init__(self, run: Any, sweep: Any, places: Sequence[tuple[int, int, int]], rows: int, width: int) -> None:
        self._table = (ctypes.c_int64 * (3 * len(places)))(*itertools.chain.from_iterable(places))
        self._run = functools.partial(run, self._table, rows, width)
        self._sweep = functools.partial(sweep, self._table, rows, width)

    def __call__(self, step: int) -> None:
        self._run(step)

    def through(self, product: Product, steps: range, ahead: bool, weights: Weights | None = None) -> None:
        """Do these steps, one after the other, each with the product of its own, ahead of it or behind it."""
        if steps:
            added_up = None if weights is None else weights.fields
            self._sweep(ahead, steps[0], steps[-1] + steps.step, product.fields, added_up)

    def give(self, i: int, x: Tensor) -> None:
        """Let the i-th tensor be another of the same layout."""
        self._table[3 * i] = x.data_ptr()


def place(x: Tensor, shift: int = 0) -> tuple[int, int, int]:
    """Where a tensor's numbers lie: [steps, rows, n], or [rows, n] for the same at each step. Rows lie in one piece.

    Args:
        shift: step t is to find those of step t + shift.
    """
    step, row = (x.stride(0), x.stride(1)) if x.dim() == 3 else (0, x.stride(0))
    return x.data_ptr() + shift * step * x.element_size(), step, row


_CPU = torch.device("cpu")


def loop_of_formula(
    formula: Callable[..., Sequence[Any]], widths: Sequence[int], dtype: torch.dtype, device: torch.device = _CPU
) -> Loop | StepKernel | None:
    """A loop of a formula that calls methods of its tensors, [rows, n * width] with n one of `widths` for each."""

    def write(writer: _Writer) -> list[_Values | None]:
        return [out.values for out in formula(*(_Row(writer, writer.input(n)) for n in widths))]

    return _loop(_Writer(1), write, dtype, device)


def loop_of_graph(
    graph: fx.Graph, width: int, dtype: torch.dtype, device: torch.device = _CPU
) -> Loop | StepKernel | None:
    """A loop of a graph of tensors [rows, n * width] whose operations work entry by entry, or cut and join whole widths.

    The graph returns tensors and None.
    """
    return _loop(_Writer(width), lambda writer: writer.follow(graph), dtype, device)


def _loop(
    writer: _Writer, write: Callable[[_Writer], list[_Values | None]], dtype: torch.dtype, device: torch.device
) -> Loop | StepKernel | None:
    if dtype not in DTYPES:
        return None
    try:
        outs = write(writer)
    except UnknownOperation as unknown:
        log.info("torch's own operations run in place of a loop in C, which has none for %s", unknown)
        return None
    for out in outs:
        if out is not None:
            writer.output(out)
    has, twice = [out is not None for out in outs], outs[:1] == outs[1:2]
    if device.type != "cpu":
        start = kernel_of(source_of(writer.lines, writer.tensors, dtype), device)
        return None if start is None else StepKernel(start, has, twice)
    pointers = [
        f"T *p{i} = places[{i}].start + t * places[{i}].step + r * places[{i}].row;" for i in range(writer.tensors)
    ]
    loop = _LOOP.format(pointers="\n    ".join(pointers), lines="\n      ".join(writer.lines))
    found = library(PRODUCT + loop, dtype)
    return None if found is None else Loop(found, has, twice)


class _Writer:
    """Writes what a loop does to the numbers of one place, line by line; nothing twice."""

    def __init__(self, width: int) -> None:
        self.width, self.tensors = width, 0
        self.lines: list[str] = []
        self.known: dict[str, str] = {}
        self.origins: dict[str, Origin] = {}  # of what has a name

    def input(self, n: int) -> _Values:
        """The names of a tensor's numbers."""
        self.tensors += 1
        return [self.name(f"p{self.tensors - 1}[{k} * width + j]") for k in range(n)]

    def output(self, values: _Values) -> None:
        """Have a tensor take these values."""
        self.tensors += 1
        self.lines += [f"p{self.tensors - 1}[{k} * width + j] = {literal(x)};" for k, x in enumerate(values)]

    def name(self, found: Value) -> Value:
        """A name for what is worked out, unless it is known or has one."""
        if isinstance(found, float) or found.isidentifier():
            return found
        if found not in self.known:
            self.known[found] = f"v{len(self.known)}"
            self.lines.append(f"T {self.known[found]} = {found};")
        return self.known[found]

    def by_entry(self, op: Any, *args: Any, **kwargs: Any) -> _Values:
        """What an operation makes of tensors and numbers."""
        if op not in BY_ENTRY or set(kwargs) - {"alpha", "value"}:
            raise UnknownOperation(str(op))
        operands: list[_Values] = [arg if isinstance(arg, list) else [float(arg)] for arg in args]
        n = max(map(len, operands))
        if any(len(x) not in (1, n) for x in operands):
            raise UnknownOperation(f"{op} on rows of several sizes")
        found = []
        for entry in zip(*(x * n if len(x) == 1 else x for x in operands)):
            secant = apart(self.origins, *entry) if op is aten.sub.Tensor and not kwargs else None
            found.append(self.name(secant or BY_ENTRY[op](*entry, **kwargs)))
            if isinstance(found[-1], str) and not kwargs:
                self.origins.setdefault(found[-1], (op, entry))
        return found

    def follow(self, graph: fx.Graph) -> list[_Values | None]:
        """What a graph returns."""
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            args = fx.node.map_arg(node.args, values.__getitem__)
            if node.op == "placeholder":
                values[node] = self.input(self._widths(node))
            elif node.op == "output":
                return list(args[0])  # type: ignore[arg-type]
            elif node.target in BY_ROW:
                values[node] = BY_ROW[node.target](self.width, *args)
            elif node.target in KNOWN:
                values[node] = [float(KNOWN[node.target](*args))] * self._widths(node)
            else:
                values[node] = self.by_entry(node.target, *args, **node.kwargs)
        raise AssertionError("a graph has an output")

    def _widths(self, node: fx.Node) -> int:
        shape = node.meta["val"].shape
        if not shape or shape[-1] == 1:
            return 1
        if shape[-1] % self.width:
            raise UnknownOperation(f"rows of {shape[-1]} beside those of {self.width}")
        return int(shape[-1]) // self.width


class _Row:
    """Stands for a tensor in a formula."""

    def __init__(self, writer: _Writer, values: _Values) -> None:
        self.writer, self.values = writer, values

    def _by(self, op: Any, *others: _Row) -> _Row:
        return _Row(self.writer, self.writer.by_entry(op, self.values, *(other.values for other in others)))

    def __add__(self, other: _Row) -> _Row:
        return self._by(aten.add.Tensor, other)

    def __sub__(self, other: _Row) -> _Row:
        return self._by(aten.sub.Tensor, other)

    def __mul__(self, other: _Row) -> _Row:
        return self._by(aten.mul.Tensor, other)

    def relu(self) -> _Row:
        return self._by(aten.relu.default)

    def sigmoid(self) -> _Row:
        return self._by(aten.sigmoid.default)

    def tanh(self) -> _Row:
        return self._by(aten.tanh.default)

    def chunk(self, n: int, dim: int) -> list[_Row]:
        size = len(self.values) // n
        return [_Row(self.writer, part) for part in BY_ROW[aten.split.Tensor](1, self.values, size, dim)]
