"""Matrix products by oneDNN, on processors where PyTorch's own leave half of the machine unused.

`torch.mm` calls MKL, which on processors of AMD does not use the widest vector registers (AVX512). oneDNN, which comes with
PyTorch as well, does: there a product of float32 takes half the time where such a register is worked out at once (Zen 5), and
up to a tenth less where it is worked out in two halves (Zen 4; docs/performance.md). The walk back takes it, and so do
recurrent layers both ways, as they do in PyTorch itself; all else in a forward keeps `torch.mm`, so that what a wrapped model
answers is what the plain model answers, to the digit.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["LEAST", "OPERATIONS", "addmm", "least", "mm", "mm_into", "onednn_is_quicker", "onednn_takes_half", "times"]

LEAST = 1 << 20  # multiplications from which on a product by oneDNN is quicker; below, its start is what counts
_LEAST_OF_A_TENTH = 1 << 24  # the same where it gains a tenth at most
_COLUMNS_WORTH_A_COPY = 1024  # of a product, from which on that gains as much as the copy of a first factor costs
_PLAIN = (Tensor, nn.Parameter)
_ZEN_5 = 26  # AMD's family number


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether this machine is one where oneDNN's products are the quicker ones; by its processor and PyTorch's build alone,
    so that two runs on one machine round alike."""
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return (
        "AuthenticAMD" in _processor() and libraries and known and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


@functools.cache
def onednn_takes_half() -> bool:
    """Whether it is one where they take half the time, and not nine tenths."""
    family = re.search(r"(?:cpu family\s*:|Family) (\d+)", _processor())
    return family is not None and int(family[1]) >= _ZEN_5


def least() -> int:
    """Multiplications from which on a product by oneDNN is quicker, if nothing has to be copied for it."""
    return LEAST if onednn_takes_half() else _LEAST_OF_A_TENTH


def _processor() -> str:
    found = Path("/proc/cpuinfo")
    return found.read_text(errors="replace") if found.is_file() else platform.processor()


def _fits(*xs: Tensor) -> bool:
    """Whether a product a @ b, given last, is one for oneDNN: large, of plain float32 tensors of the CPU."""
    a, b = xs[-2:]
    size = a.shape[0] * a.shape[1] * b.shape[1]
    return (
        onednn_is_quicker()
        and size >= least()
        and (onednn_takes_half() or _is_worth_its_copies(a, b))
        and all(type(x) in _PLAIN and x.dtype is torch.float32 and x.device.type == "cpu" for x in xs)
        and bool(torch.backends.mkldnn.enabled)
    )


def _is_worth_its_copies(a: Tensor, b: Tensor) -> bool:
    return (a.stride(-1) == 1 or b.shape[1] >= _COLUMNS_WORTH_A_COPY) and _dense(b) is b


def _by_onednn(a: Tensor, b: Tensor, row: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, _dense(b).t(), row, "none", [], "")
    return product


def _dense(x: Tensor) -> Tensor:
    """A matrix whose rows or columns follow each other without gaps, for which alone oneDNN has its quick kernels."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def _with_less_copied(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, perhaps not in order in memory. oneDNN copies a first factor that is not; a smaller second can take its place."""
    if a.stride(-1) != 1 and 2 * b.shape[1] * (a.shape[0] + a.shape[1]) <= a.numel():
        return _by_onednn(b.t(), a.t()).t()
    return _by_onednn(a, b)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.mm`: [n, k] and [k, m] give [n, m]."""
    if _fits(a, b):
        return _with_less_copied(a, b).contiguous()
    return torch.mm(a, b)


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`torch.addmm`: c + a @ b, where c has the shape of the product or one that is stretched to it."""
    if beta == alpha == 1 and c.shape == (a.shape[0], b.shape[1]) and _fits(c, a, b):
        return torch.ops.mkldnn._linear_pointwise.binary(a, c, _dense(b).t(), None, "add")
    if beta == alpha == 1 and c.shape == b.shape[1:] and _fits(c, a, b):
        return _by_onednn(a, b, c)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def mm_into(out: Tensor, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """a @ b, plus c where it is given, written into `out`."""
    if _fits(a, b):
        product = _with_less_copied(a, b)
        return out.copy_(product) if c is None else torch.add(product, c, out=out)
    return torch.mm(a, b, out=out) if c is None else torch.addmm(c, a, b, out=out)


def times(b: Tensor, row: Tensor | None, first: Tensor) -> Callable[[Tensor], Tensor]:
    """What multiplies many tensors like `first` [n, k] by b [k, m], and adds row [m]; results are new and in order in memory."""
    if _fits(first, b):
        return functools.partial(_by_onednn, b=b, row=row)
    return functools.partial(torch.mm, mat2=b) if row is None else functools.partial(torch.addmm, row, mat2=b)


# The same as operations, which a compiler leaves as they are.
_library = torch.library.Library("lfpgraph_products", "DEF")
_library.define("mm(Tensor a, Tensor b) -> Tensor")
_library.define("addmm(Tensor c, Tensor a, Tensor b) -> Tensor")
_library.impl("mm", mm, "CompositeExplicitAutograd")
_library.impl("addmm", addmm, "CompositeExplicitAutograd")
torch.library.register_fake("lfpgraph_products::mm", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), lib=_library)
torch.library.register_fake(
    "lfpgraph_products::addmm", lambda c, a, b: a.new_empty(a.shape[0], b.shape[1]), lib=_library
)
OPERATIONS = {
    torch.ops.aten.mm.default: torch.ops.lfpgraph_products.mm.default,
    torch.ops.aten.addmm.default: torch.ops.lfpgraph_products.addmm.default,
}
