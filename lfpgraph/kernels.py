"""The formulas of feedback as operations of their own, `torch.ops.lfpgraph`: a traced graph holds one node for each.

An elementwise formula is written once, in torch's operations. That is what runs for small tensors and on other devices
than a CPU, what exporters and compilers see (`DECOMPOSITIONS`), and what gives shapes while tracing. On a CPU, a large
tensor would pass through memory three or four times; there it runs in blocks that stay in the processor's cache, or as a
pass in C, with the same result to the last bit; on a GPU as one kernel, where torch can compile one (`native.gpu`).

`NAME_` may write the result over the first argument. None of these operations records a derivative: call them through
`numerics`, which takes the plain formula where one is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .native import matmul
from .native.gpu import in_one_kernel, scaled_by_floored
from .native.passes import is_dense, known_passes

__all__ = [
    "DECOMPOSITIONS",
    "KERNELS",
    "LOW_PRECISION",
    "SMALL",
    "define",
    "epsilon_factor",
    "halved",
    "halved_factor",
    "identity_signal",
    "scale_by_size",
    "scale_small",
]

aten = torch.ops.aten
LOW_PRECISION = (torch.float16, torch.bfloat16)
_BLOCK = 1 << 17  # elements; scratch, block and operands fit into a megabyte or two of cache
SMALL = _BLOCK  # elements, up to which the formula is quicker than a choice between kernels
_BAND = 1 << 19  # elements of a band of rows of a product
_SHORT = 512  # rows summed over, up to which a product is bound by memory

_LIBRARY = torch.library.Library("lfpgraph", "DEF")
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}  # operation -> the same in operations of ATen
KERNELS: dict[Any, Callable[..., Tensor]] = {}  # operation -> what it runs on real tensors


def define(schema: str, kernel: Callable[..., Tensor], shapes: Callable[..., Any], *tags: torch.Tag) -> Any:
    """Make an operation that runs `kernel`, and `shapes` on fake tensors."""
    _LIBRARY.define(schema, tags=tags)
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lfpgraph::{name}", shapes, lib=_LIBRARY)
    operation = getattr(torch.ops.lfpgraph, name).default
    KERNELS[operation] = kernel
    kernel.__name__ = kernel.__qualname__ = name  # as generated code will show it
    return operation


def _elementwise(arguments: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make a formula the operation of its name, and the one that writes over the first argument.

    Behind its arguments, tensors first, the formula takes `out`, which it writes to if there is one, and `scratch`,
    memory for what comes between.
    """
    n = arguments.count("Tensor")

    def register(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = formula.__name__

        def fresh(*args: Any) -> Tensor:
            if args[0].is_cuda and (made := in_one_kernel(name, args[:n], *args[n : n + 1])) is not None:
                return made
            return _run(formula, args, n, torch.empty_like(args[0])) if _is_large(args[:n]) else formula(*args)

        def over(*args: Any) -> Tensor:
            if args[0].is_cuda:
                return fresh(*args)
            return _run(formula, args, n, args[0]) if _is_large(args[:n]) else formula(*args, out=args[0])

        written = arguments.replace("Tensor", "Tensor(a!)", 1)
        operation = define(f"{name}({arguments}) -> Tensor", fresh, formula, torch.Tag.pointwise)
        define(f"{name}_({written}) -> Tensor(a!)", over, lambda first, *_: first, torch.Tag.pointwise)
        DECOMPOSITIONS[operation] = formula
        return formula

    return register


def _is_large(tensors: Sequence[Tensor]) -> bool:
    """Whether blocks pay and line up: large tensors on a CPU, of one shape and type, their entries in one order."""
    first = tensors[0]
    layout = torch.contiguous_format if first.is_contiguous() else torch.channels_last
    unordered = layout is torch.channels_last and first.dim() != 4
    if first.numel() <= _BLOCK or first.device.type != "cpu" or unordered:
        return False
    kind = first.dtype, first.shape
    return all((t.dtype, t.shape) == kind and t.is_contiguous(memory_format=layout) for t in tensors)


def _run(formula: Callable[..., Tensor], args: Sequence[Any], n: int, out: Tensor) -> Tensor:
    """Run a formula of n tensors in blocks, into `out`."""
    for *block, into, scratch in _blocks(*args[:n], out):
        formula(*block, *args[n:], out=into, scratch=scratch)
    return out


def _blocks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors' common blocks, and a scratch of the same size with each."""
    count = tensors[0].numel()
    flat = [t.as_strided((count,), (1,)) for t in tensors]
    memory = torch.empty(_BLOCK, dtype=tensors[0].dtype, device=tensors[0].device)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        yield [*(t.narrow(0, start, size) for t in flat), memory.narrow(0, 0, size)]


@_elementwise("Tensor s, Tensor w")
def scale_by_size(s: Tensor, w: Tensor, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
    """`s * abs(w)`."""
    return torch.mul(s, torch.abs(w, out=scratch), out=out)


def _floored(s: Tensor, w: Tensor, floor: Tensor, unit: Tensor | None, out: Tensor | None = None) -> Tensor:
    """`s * max(abs(w), floor) * unit`."""
    size = torch.maximum(w.abs(), floor)
    return torch.mul(s, size if unit is None else size * unit, out=out)


def _rms(w: Tensor) -> Tensor:
    norm = functools.partial(torch.linalg.vector_norm, dtype=torch.float32 if w.dtype in LOW_PRECISION else None)
    # one sum over millions of float32 would lose digits; sums of three entries, as a kernel has in a row, would take long
    found = norm(w) if w.numel() <= _BLOCK else norm(norm(w, dim=[*range(1, w.dim())] or None))
    return (found / math.sqrt(w.numel())).to(w.real.dtype if w.is_complex() else w.dtype)


def floor_and_unit(w: Tensor, share: float, unit: float) -> tuple[Tensor, Tensor | None]:
    """`share * rms(w)`, and the larger one of `unit` and `1 / rms(w)`; None where the unit is 1."""
    rms = _rms(w)
    return rms * share, None if unit == 1 else rms.clamp_min(_tiny(rms.dtype)).reciprocal().clamp_min(unit)


@functools.cache
def _tiny(dtype: torch.dtype) -> float:
    """The least root mean square that is divided by, so that the feedback of zeros is zero."""
    return torch.finfo(dtype).tiny


def _scaled_by_floored(s: Tensor, w: Tensor, share: float, unit: float, out: Tensor | None) -> Tensor:
    if w.device.type != "cpu" or s.dtype != w.dtype or s.layout is not torch.strided:
        made = scaled_by_floored(s, w, share, unit) if w.is_cuda else None
        return _floored(s, w, *floor_and_unit(w, share, unit), out=out) if made is None else made
    few = w.dtype in (torch.float32, torch.float64) and w.numel() <= _BLOCK  # the same in fewer operations
    rms = torch.linalg.vector_norm(w).item() / math.sqrt(w.numel()) if few else _rms(w).item()
    least, unit = share * rms, unit if unit == 1 else max(unit, 1 / max(rms, _tiny(w.dtype)))
    alike = s.shape == w.shape and s.stride() == w.stride() and is_dense(w) and least == least
    if alike and (passes := known_passes(w.dtype)) is not None:
        return passes.floored(s, w, torch.empty_like(s) if out is None else out, least, unit)
    if _is_large([s, w]):
        return _run(_by_least, (s, w, least, unit), 2, torch.empty_like(s) if out is None else out)
    return _by_least(s, w, least, unit, out)


def _by_least(s: Tensor, w: Tensor, least: float, unit: float, out: Tensor | None, scratch: Any = None) -> Tensor:
    return torch.addcmul(_zero(s.dtype), s, torch.abs(w, out=scratch).clamp_min_(least), value=unit, out=out)


@functools.cache
def _zero(dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype, device="cpu")


def scale_small(s: Tensor, w: Tensor, share: float, unit: float) -> Tensor:
    """`scale_by_floored_size`, or `scale_by_size`, of a small w, where no gradients are recorded."""
    return torch.mul(s, w.abs()) if share == 0 and unit == 1 else _scaled_by_floored(s, w, share, unit, None)


def scale_by_floored_size(s: Tensor, w: Tensor, share: float, unit: float) -> Tensor:
    """`s * max(abs(w), share * rms(w)) * max(unit, 1 / rms(w))`; without the last factor where the unit is 1."""
    return _floored(s, w, *floor_and_unit(w, share, unit))


_FLOORED = "w, float share, float unit"
_by_floored = define(
    f"scale_by_floored_size(Tensor s, Tensor {_FLOORED}) -> Tensor",
    lambda s, w, share, unit: _scaled_by_floored(s, w, share, unit, None),
    scale_by_floored_size,
    torch.Tag.pointwise,
)
define(
    f"scale_by_floored_size_(Tensor(a!) s, Tensor {_FLOORED}) -> Tensor(a!)",
    lambda s, w, share, unit: _scaled_by_floored(s, w, share, unit, s),
    lambda s, *_: s,
    torch.Tag.pointwise,
)
DECOMPOSITIONS[_by_floored] = scale_by_floored_size


@_elementwise("Tensor s, Tensor z, float epsilon, bool positive")
def epsilon_factor(
    s: Tensor, z: Tensor, epsilon: float, positive: bool, out: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """`s - s * epsilon / (abs(z) + epsilon)`, in float32 or better. `positive`: z has no negative entry."""
    if z.dtype in LOW_PRECISION:
        found = epsilon_factor(s.float(), z.float(), epsilon, positive).to(s.dtype)
        return found if out is None else out.copy_(found)
    size = torch.add(z if positive else torch.abs(z, out=scratch), epsilon, out=scratch)
    return torch.addcdiv(s, s, size, value=-epsilon, out=out)


@_elementwise("Tensor s, Tensor z, float epsilon")
def rectified_factor(
    s: Tensor, z: Tensor, epsilon: float, out: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """The epsilon factor behind a relu with output z: of s where z is positive, zero elsewhere."""
    threshold = aten.threshold_backward
    passed = threshold.default(s, z, 0) if out is None else threshold.grad_input(s, z, 0, grad_input=out)
    return torch.addcdiv(passed, passed, torch.add(z, epsilon, out=scratch), value=-epsilon, out=out)


@_elementwise("Tensor s, Tensor x, Tensor z, float epsilon")
def identity_signal(
    s: Tensor, x: Tensor, z: Tensor, epsilon: float, out: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """`s * z / (x + epsilon * sign(x))` with sign(0) = 1, in float32 or better."""
    if z.dtype in LOW_PRECISION or x.dtype in LOW_PRECISION:
        found = identity_signal(s.float(), x.float(), z.float(), epsilon).to(x.dtype)
        return found if out is None else out.copy_(found)
    unit = torch.full((), epsilon, dtype=x.dtype, device=x.device)
    size = torch.add(torch.copysign(unit, torch.add(x, 0.0, out=scratch), out=scratch), x, out=scratch)
    return torch.div(torch.mul(s, z, out=out), size, out=out)


_HALVED = 2.0**-8  # what stands for epsilon in half of the memory: sizes to sixteen million times epsilon fit beside it


def halved(z: Tensor, epsilon: float) -> Tensor:
    """`abs(z)` in half precision, in units of 256 epsilon: all that the epsilon factor has to know of z."""
    if not _is_large([z]):
        return (z.abs() * (_HALVED / epsilon)).half()
    return _run(_halve, (z, epsilon), 1, torch.empty_like(z, dtype=torch.float16))


def _halve(z: Tensor, epsilon: float, out: Tensor, scratch: Tensor) -> Tensor:
    return out.copy_(torch.abs(z, out=scratch).mul_(_HALVED / epsilon))


def halved_factor(s: Tensor, h: Tensor, over: bool = False) -> Tensor:
    """The epsilon factor of s, where h is what `halved` has made of z. The factor's error is at most 2**-12 of 1 less itself.

    With `over`, the result is written over s if it can be.
    """
    if not _is_large([s]) or s.stride() != h.stride():
        return epsilon_factor(s, h.to(s.dtype), _HALVED, True)
    return _run(_halved_factor, (s, h), 2, s if over else torch.empty_like(s))


def _halved_factor(s: Tensor, h: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    return epsilon_factor(s, scratch.copy_(h), _HALVED, True, out=out, scratch=scratch)


def _scaled_product(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """`(a @ b) * abs(w)`: rows [rows, n] times [n, columns], scaled while they are in the cache.

    Worth it where the product is bound by memory, which is where n is small.
    """
    rows, columns = w.shape
    step = max(64, _BAND // max(columns, 1))
    if w.device.type != "cpu" or b.shape[0] > _SHORT or rows <= step or not w.is_contiguous():
        return KERNELS[torch.ops.lfpgraph.scale_by_size_.default](matmul.mm(a, b), w)
    out = torch.empty((rows, columns), dtype=a.dtype, device=a.device)
    scratch = torch.empty((step, columns), dtype=w.dtype, device=w.device)
    for start in range(0, rows, step):
        band = matmul.mm_into(out[start : start + step], a[start : start + step], b)
        scale_by_size(band, w[start : start + step], out=band, scratch=scratch[: band.shape[0]])
    return out


def _add_rows_over(total: Tensor, s: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool) -> Tensor:
    """`total + embedding_dense_backward(s, indices, ...)`, written over total [rows, n], without a second such matrix."""
    if total.device.type != "cpu" or by_frequency:
        return total.add_(aten.embedding_dense_backward.default(s, indices, rows, padding, by_frequency))
    places, terms = indices.reshape(-1), s.reshape(-1, s.shape[-1])
    if padding >= 0:
        terms = terms.masked_fill((places == padding).unsqueeze(1), 0)
    return total.index_add_(0, places, terms)


def _add_rows(total: Tensor, *args: Any) -> Tensor:
    return _add_rows_over(total.clone(), *args)


define("scaled_product(Tensor a, Tensor b, Tensor w) -> Tensor", _scaled_product, lambda a, b, w: torch.mm(a, b))
_ROWS = "total, Tensor s, Tensor indices, SymInt rows, SymInt padding, bool by_frequency"
define(f"add_rows(Tensor {_ROWS}) -> Tensor", _add_rows, lambda total, *_: torch.clone(total), torch.Tag.pointwise)
define(f"add_rows_(Tensor(a!) {_ROWS}) -> Tensor(a!)", _add_rows_over, lambda total, *_: total, torch.Tag.pointwise)
