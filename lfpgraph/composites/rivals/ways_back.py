"""What brings signals back through layers in place of the transposed weights.

For a layer z = W h with the signal s at z, and e the signal at the model's output, h gets

| `weights` | signal of h | matrix | source |
|---|---|---|---|
| `random` | `B^T s` | B fixed | feedback alignment, Lillicrap et al. 2016 |
| `refreshed` | `B^T s` | B new for each batch | this project, to see what a fixed B is good for |
| `uniform-sign` | `V^T s` | `V = c sign(W)` | uSF, Liao, Leibo and Poggio 2016 |
| `batch-sign` | `V^T s` | `V = M * sign(W)`, M >= 0 new for each batch | brSF, the same |
| `fixed-sign` | `V^T s` | `V = M * sign(W)`, M >= 0 fixed | frSF, the same |
| `direct` | `B^T e` | B fixed | direct feedback alignment, Noekland 2016 |
| `target` | `-B^T y / n` | B fixed, y one-hot, n samples | DRTP, Frenkel et al. 2021 (its B has the other sign) |

Every matrix is random in the layer's own size: B uniform in ±1/sqrt(fan-in), M the magnitude of such numbers, c the root of
their mean square. (Liao et al. have M uniform in [0, 1] and c = 1; the size matters to the step, not to the direction within
a layer.) A derivative of an activation is applied where it always is, on the way through the activation. Weights themselves
get their usual signal, `s h^T`, of the s that so arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import RuleError
from ...registry import Call, Handler, Signals

__all__ = ["WAYS_BACK", "fixed_random"]

Key = int | Tensor
Usual = Callable[[Handler], Handler]


def fixed_random(shape: torch.Size, key: Key, like: Tensor) -> Tensor:
    """A uniform random tensor of a linear layer's usual spread, the same at every call with the same key.

    Its entries are a hash of their places, so nothing is kept and no random state is touched.
    """
    count = math.prod(shape)
    mask, h = 0xFFFFFFFF, torch.arange(count, dtype=torch.int64, device=like.device) * 2654435761 + key
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = h & mask
        h = ((h ^ (h >> shift)) * factor) & mask
    uniform = h.to(torch.float64) / 2**31 - 1
    return (uniform * _bound(shape)).to(like.dtype).reshape(shape)


def _bound(shape: torch.Size) -> float:
    return 1 / math.sqrt(max(math.prod(shape) // max(int(shape[0]), 1), 1))


def batch_key(key: int, given: list[Tensor]) -> Key:
    """A key that is another for each batch: mixed with the leading 16 binary digits of the size of the signal at the output.

    So no random state is touched, and whoever repeats a step gets the same matrices. Digits further back would differ between
    two ways to compute the same signal.
    """
    size = given[0].detach().to(torch.float64).abs().sum()
    return (size.view(torch.int64) >> 36) * 40503 + key


def _random(w: Tensor, key: int, given: list[Tensor]) -> Tensor:
    return fixed_random(w.shape, key, w)


def _refreshed(w: Tensor, key: int, given: list[Tensor]) -> Tensor:
    return fixed_random(w.shape, batch_key(key, given), w)


def _uniform_sign(w: Tensor, key: int, given: list[Tensor]) -> Tensor:
    return w.sign() * (_bound(w.shape) / math.sqrt(3))


def _batch_sign(w: Tensor, key: int, given: list[Tensor]) -> Tensor:
    return w.sign() * _refreshed(w, key, given).abs()


def _fixed_sign(w: Tensor, key: int, given: list[Tensor]) -> Tensor:
    return w.sign() * _random(w, key, given).abs()


def _through(matrix: Callable[[Tensor, int, list[Tensor]], Tensor]) -> Callable[[int], Usual]:
    """The activation's signal comes through another matrix in the weight's place."""

    def make(key: int) -> Usual:
        def rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
            signals = call.vjp(s)
            for i, x in enumerate(call.inputs):
                if not (call.active[i] and call.wanted[i]):
                    continue
                tensors = [
                    matrix(w.detach(), key, call.given) if weightlike and w.dim() > 1 else w
                    for w, weightlike in zip(call.inputs, call.weightlike)
                ]
                leaf = tensors[i] = x.detach().requires_grad_()
                with torch.enable_grad():
                    z = call.run(tensors)
                (signals[i],) = torch.autograd.grad(z, leaf, s)
            return signals

        return lambda usual: rule

    return make


def _projected(target: bool) -> Callable[[int], Usual]:
    """The activation's signal is a fixed random projection of the signal at the model's output, or of the target."""

    def make(key: int) -> Usual:
        def rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
            signals = call.vjp(s)
            for i, x in enumerate(call.inputs):
                if call.active[i] and call.wanted[i]:
                    signals[i] = _project(call.given, call.direction if target else 0, x, key)
            return signals

        return lambda usual: rule

    return make


def _project(given: list[Tensor], direction: int, x: Tensor, key: int) -> Tensor:
    """A projection of the output's signal [n, c] onto x [n, ...], or of [n, t, c] onto x [n, t, d].

    Spikes [t, n, c] count summed over time; activations [t, n, ...] get the projection of [n, c] at every time. With a
    direction (1: signals are rewards, -1: gradients) the signal's positive entries become 1 and the others 0: for
    cross-entropy and its like that is the one-hot target.
    """
    error = given[0]
    rows = error.dim() - 1
    if error.dim() == 3 and not _same(error.shape[:2], x.shape[:2]) and _same(error.shape[1:2], x.shape[:1]):
        error, rows = error.sum(0), 1
    elif not _same(error.shape[:rows], x.shape[:rows]) and _same(error.shape[:1], x.shape[:1]):
        error, rows = error.flatten(1), 1
    spread = (
        x.dim() > 2 and rows == 1 and not _same(error.shape[:1], x.shape[:1]) and _same(error.shape[:1], x.shape[1:2])
    )
    times = x.shape[0]
    if spread:
        x = x[0]
    if not _same(error.shape[:rows], x.shape[:rows]):
        raise RuleError(
            f"the output's signal {list(given[0].shape)} cannot be projected onto an activation {list(x.shape)}: direct "
            "feedback needs the batch as the first dimension of both (or spikes [t, n, c])"
        )
    if direction:
        error = direction * ((direction * error) > 0).to(error.dtype) / error.shape[0]
    inner = [int(size) for size in x.shape[rows:]]
    matrix = fixed_random(torch.Size([int(error.shape[-1]), math.prod(inner)]), key, x)
    found = (error.to(x.dtype) @ matrix).reshape([*x.shape[:rows], *inner])
    return found.expand(times, *found.shape) if spread else found


def _same(a: Any, b: Any) -> bool:
    """Whether two shapes agree; open sizes compared as such would be guarded."""
    return [str(n) for n in a] == [str(n) for n in b]


WAYS_BACK: dict[str, Callable[[int], Usual]] = {
    "batch-sign": _through(_batch_sign),
    "direct": _projected(target=False),
    "fixed-sign": _through(_fixed_sign),
    "random": _through(_random),
    "refreshed": _through(_refreshed),
    "target": _projected(target=True),
    "uniform-sign": _through(_uniform_sign),
}
