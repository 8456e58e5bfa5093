"""Other ways of training what has no useful gradient, as composites: the same graph and walk, one argument of `wrap`.

| composite | reward at a threshold | weights on the way back | time |
|---|---|---|---|
| `surrogate` | derivative of an arctangent | true | all of it |
| `straight-through` | as if the threshold were the identity | true | all of it |
| `sltt` | as `surrogate` | true | none; nothing is kept (`online`) |
| `feedback-alignment` | as `surrogate` | fixed random | all of it |
| `direct-feedback-alignment` | as `surrogate` | fixed random, from the output | all of it |
| `drtp` | as `surrogate` | fixed random, from the target | all of it |

Everything else gets its true derivative, and no parameter is scaled by its weight, so signals are gradients with the
other sign. A reset path carries none, as in snntorch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CompositeError, RuleError, check_choice
from ..graph.graph import ACTIVE, WEIGHT, OpGraph, ancestors
from ..graph.neurons import SPIKES, STEPS, find_neurons
from ..graph.structure import Structure
from ..registry import CONTRACTION, Call, Handler, Signals
from .composite import Composite, Ruleset
from .surrogates import SLOPES, soft_vjp

__all__ = ["rival"]


def rival(
    name: str,
    *,
    surrogate: str = "atan",
    slope: float = 2.0,
    through_time: bool = True,
    weights: str = "true",
    online: bool = False,
) -> Composite:
    """A composite of the family above; register it, or pass it to `wrap`.

    Args:
        name: of the composite.
        surrogate: derivative of a threshold: "atan" (snntorch's default), "fast_sigmoid" (Zenke and Ganguli 2018),
            "box" (1 within 1/slope of the threshold) or "identity" (straight-through, Bengio et al. 2013).
        slope: its steepness; snntorch takes 2 for the arctangent and 25 for the fast sigmoid.
        through_time: False lets no signal pass from a membrane to an earlier state of the same neuron (SLTT, Meng et
            al. 2023).
        weights: what brings signals back through layers: "true"; "random", a fixed random matrix for each parameter
            (Lillicrap et al. 2016); "direct", the output's signal through one (Noekland 2016); "target", the one-hot
            target through one (Frenkel et al. 2021), read from the signal's sign at the output.
        online: see `Composite.online`.

    Raises:
        CompositeError: an unknown choice.
    """
    check_choice("surrogate", surrogate, sorted(SLOPES), CompositeError)
    check_choice("weights", weights, ("true", *_LAYERS), CompositeError)

    structure = _Surrogates(surrogate, slope, through_time, weights)
    rules = Ruleset(rules=False, epsilon=0.0, scale="signal")
    return Composite(name, rules, structure=structure, online=online)


@dataclass(frozen=True)
class _Surrogates:
    """Reads a graph for a rival; its fields are `rival`'s arguments."""

    surrogate: str
    slope: float
    through_time: bool
    weights: str

    def __call__(self, graph: OpGraph) -> Structure:
        neurons = find_neurons(graph)
        runs = [t.region() for t in neurons.thresholds if len(t.nodes) > 1]
        found = Structure(runs, blocked=set(neurons.resets))
        for threshold in neurons.thresholds:
            found.rules[threshold.exit] = lambda usual: _threshold(self.surrogate, self.slope)
        if not self.through_time:
            found.blocked |= neurons.earlier
        if self.weights != "true":
            found.rules |= {node: _LAYERS[self.weights](_key(graph, node)) for node in _layers(graph)}
        return found


def _threshold(surrogate: str, slope: float) -> Handler:
    """The rule of a piecewise constant run: the true derivative of what it would be with soft steps."""

    def rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        return soft_vjp(call, s, surrogate, slope, STEPS - SPIKES)

    return rule


def _layers(graph: OpGraph) -> list[fx.Node]:
    """Products of an activation with weights."""
    found = []
    for node in graph.operations():
        info = graph.info[node]
        if info.family is CONTRACTION and info.part == "network":
            kinds = [graph.info[n].kind for n in node.all_input_nodes]
            if ACTIVE in kinds and WEIGHT in kinds:
                found.append(node)
    return found


def _key(graph: OpGraph, layer: fx.Node) -> int:
    """A number for the parameters that a layer multiplies with: the same at every step of an unrolled loop."""
    factors = [n for n in layer.all_input_nodes if graph.info[n].kind == WEIGHT and n.meta["val"].dim() > 1]
    behind = ancestors(factors)
    names = [str(p.target) for n, p in zip(graph.placeholder_nodes, graph.placeholders) if n in behind]
    return zlib.crc32("/".join(names).encode())


def fixed_random(shape: torch.Size, key: int, like: Tensor) -> Tensor:
    """A uniform random tensor of a linear layer's usual spread, the same at every call with the same key.

    Its entries are a hash of their places, so nothing is kept and no random state is touched.
    """
    count = math.prod(shape)
    mask, h = 0xFFFFFFFF, torch.arange(count, dtype=torch.int64, device=like.device) * 2654435761 + key
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = h & mask
        h = ((h ^ (h >> shift)) * factor) & mask
    uniform = h.to(torch.float64) / 2**31 - 1
    return (uniform / math.sqrt(max(count // max(int(shape[0]), 1), 1))).to(like.dtype).reshape(shape)


def _aligned(key: int) -> Callable[[Handler], Handler]:
    """Feedback alignment: the activation's signal comes through a fixed random tensor in the weight's place."""

    def rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        signals = call.vjp(s)
        for i, x in enumerate(call.inputs):
            if not (call.active[i] and call.wanted[i]):
                continue
            tensors = [
                fixed_random(w.shape, key, w) if weightlike and w.dim() > 1 else w
                for w, weightlike in zip(call.inputs, call.weightlike)
            ]
            leaf = tensors[i] = x.detach().requires_grad_()
            with torch.enable_grad():
                z = call.run(tensors)
            (signals[i],) = torch.autograd.grad(z, leaf, s)
        return signals

    return lambda usual: rule


def _projected(target: bool) -> Callable[[int], Callable[[Handler], Handler]]:
    """The activation's signal is a fixed random projection of the signal at the model's output, or of the target."""

    def make(key: int) -> Callable[[Handler], Handler]:
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

    Spikes [t, n, c] count summed over time. With a direction (1: signals are rewards, -1: gradients) the signal's
    positive entries become 1 and the others 0: for cross-entropy and its like that is the one-hot target.
    """
    error = given[0]
    rows = error.dim() - 1
    if error.dim() == 3 and not _same(error.shape[:2], x.shape[:2]) and _same(error.shape[1:2], x.shape[:1]):
        error, rows = error.sum(0), 1
    elif not _same(error.shape[:rows], x.shape[:rows]) and _same(error.shape[:1], x.shape[:1]):
        error, rows = error.flatten(1), 1
    if not _same(error.shape[:rows], x.shape[:rows]):
        raise RuleError(
            f"the output's signal {list(given[0].shape)} cannot be projected onto an activation {list(x.shape)}: direct "
            "feedback needs the batch as the first dimension of both (or spikes [t, n, c])"
        )
    if direction:
        error = direction * ((direction * error) > 0).to(error.dtype) / error.shape[0]
    inner = [int(size) for size in x.shape[rows:]]
    matrix = fixed_random(torch.Size([int(error.shape[-1]), math.prod(inner)]), key, x)
    return (error.to(x.dtype) @ matrix).reshape([*x.shape[:rows], *inner])


def _same(a: Any, b: Any) -> bool:
    """Whether two shapes agree; open sizes compared as such would be guarded."""
    return [str(n) for n in a] == [str(n) for n in b]


_LAYERS: dict[str, Callable[[int], Callable[[Handler], Handler]]] = {
    "direct": _projected(target=False),
    "random": _aligned,
    "target": _projected(target=True),
}


def rival_composites() -> list[Composite]:
    """The rivals of LFP that have a name of their own."""
    return [
        rival("surrogate"),
        rival("straight-through", surrogate="identity", slope=1.0),
        rival("sltt", through_time=False, online=True),
        rival("feedback-alignment", weights="random"),
        rival("direct-feedback-alignment", weights="direct"),
        rival("drtp", weights="target"),
    ]
