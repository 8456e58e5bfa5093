"""Other ways of training what has no useful gradient, as composites: the same graph and walk, one argument of `wrap`.

| composite | reward at a threshold | weights on the way back | time |
|---|---|---|---|
| `surrogate` | derivative of an arctangent | true | all of it |
| `straight-through` | as if the threshold were the identity | true | all of it |
| `sltt` | as `surrogate` | true | none; nothing is kept (`online`) |
| `sltt-k` | as `surrogate`, at two steps of time | true | none; nothing is kept (`online`) |
| `feedback-alignment` | as `surrogate` | fixed random | all of it |
| `feedback-alignment-refreshed` | as `surrogate` | random, new for each batch | all of it |
| `usf` | as `surrogate` | the true weights' signs | all of it |
| `brsf` | as `surrogate` | their signs, sizes random, new for each batch | all of it |
| `frsf` | as `surrogate` | their signs, sizes random, fixed | all of it |
| `direct-feedback-alignment` | as `surrogate` | fixed random, from the output | all of it |
| `drtp` | as `surrogate` | fixed random, from the target | all of it |

At a threshold h = (a > 0) the signal of a is that of h times f'(a), with

- `surrogate`: `f'(a) = (k / 2) / (1 + (pi k a / 2)^2)`, k = 2, the derivative of an arctangent (Fang et al. 2021, snntorch);
- `straight-through`: `f'(a) = 1` (Bengio, Leonard and Courville 2013);
- `sltt`: as `surrogate`; of a membrane `u_t = beta u_{t-1} + W x_t` the weights learn by `dW = sum_t du_t x_t^T` with
  `du_t = ds_t f'(u_t - 1)`, where backpropagation through time adds `beta du_{t+1}` (Meng et al. 2023, equation 11);
- `sltt-k`: as `sltt` with t over two steps in place of all, drawn anew for each batch (the same, section 4.3; `steps_kept`). What
  lies behind the last spikes learns from all steps.

Everything else gets its true derivative, and no parameter is scaled by its weight, so signals are gradients with the
other sign. A reset path carries none, as in snntorch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import CompositeError, check_choice
from ...graph.graph import ACTIVE, WEIGHT, OpGraph, ancestors
from ...graph.neurons import SPIKES, STEPS, Neurons, Threshold, find_neurons
from ...graph.structure import Structure
from ...registry import CONTRACTION, Call, Handler, Signals
from ..composite import Composite, Ruleset
from .surrogates import SLOPES, soft_vjp
from .ways_back import WAYS_BACK, batch_key, fixed_random

__all__ = ["rival", "rival_composites"]


def rival(
    name: str,
    *,
    surrogate: str = "atan",
    slope: float = 2.0,
    through_time: bool = True,
    weights: str = "true",
    online: bool = False,
    steps_kept: int | None = None,
) -> Composite:
    """A composite of the family above; register it, or pass it to `wrap`.

    Args:
        name: of the composite.
        surrogate: derivative of a threshold: "atan" (snntorch's default), "fast_sigmoid" (Zenke and Ganguli 2018),
            "box" (1 within 1/slope of the threshold) or "identity" (straight-through, Bengio et al. 2013).
        slope: its steepness; snntorch takes 2 for the arctangent and 25 for the fast sigmoid.
        through_time: False lets no signal pass from a membrane to an earlier state of the same neuron (SLTT, Meng et
            al. 2023).
        weights: what brings signals back through layers: "true", or one of `WAYS_BACK` (see `ways_back`): "random",
            "refreshed", "uniform-sign", "batch-sign", "fixed-sign", "direct", "target". The last reads the target from the
            signal's sign at the output.
        online: see `Composite.online`.
        steps_kept: at how many steps of time spikes hand back a signal, drawn anew for each batch (SLTT-K); None for all.

    Raises:
        CompositeError: an unknown choice.
    """
    check_choice("surrogate", surrogate, sorted(SLOPES), CompositeError)
    check_choice("weights", weights, ("true", *WAYS_BACK), CompositeError)

    if steps_kept is not None and steps_kept < 1:
        raise CompositeError(f"steps_kept={steps_kept} must be at least 1")
    structure = _Surrogates(surrogate, slope, through_time, weights, steps_kept)
    rules = Ruleset(rules=False, epsilon=0.0, scale="signal")
    return Composite(name, rules, structure=structure, online=online)


@dataclass(frozen=True)
class _Surrogates:
    """Reads a graph for a rival; its fields are `rival`'s arguments."""

    surrogate: str
    slope: float
    through_time: bool
    weights: str
    steps_kept: int | None

    def __call__(self, graph: OpGraph) -> Structure:
        neurons = find_neurons(graph)
        runs = [t.region() for t in neurons.thresholds if len(t.nodes) > 1]
        found = Structure(runs, blocked=set(neurons.resets))
        for threshold in neurons.thresholds:
            found.rules[threshold.exit] = self._rule(neurons, threshold)
        if not self.through_time:
            found.blocked |= neurons.earlier
        if self.weights != "true":
            found.rules |= {node: WAYS_BACK[self.weights](_key(graph, node)) for node in _layers(graph)}
        return found

    def _rule(self, neurons: Neurons, threshold: Threshold) -> Callable[[Handler], Handler]:
        """The rule of a piecewise constant run: the true derivative of what it would be with soft steps."""
        time, times = neurons.times[threshold.entry], max(neurons.times.values()) + 1

        def rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
            if self.steps_kept is not None and self.steps_kept < times:
                s = s * _is_kept(time, times, self.steps_kept, call.given)
            return soft_vjp(call, s, self.surrogate, self.slope, STEPS - SPIKES)

        return lambda usual: rule


def _is_kept(time: int, times: int, count: int, given: list[Tensor]) -> Tensor:
    """Whether a step is among those drawn for this batch: by a hash of the signal at the output, the same in all layers."""
    drawn = fixed_random(torch.Size([times]), batch_key(0, given), given[0])
    return (drawn < drawn[time]).sum() < count


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


def rival_composites() -> list[Composite]:
    """The rivals of LFP that have a name of their own."""
    return [
        rival("surrogate"),
        rival("straight-through", surrogate="identity", slope=1.0),
        rival("sltt", through_time=False, online=True),
        rival("sltt-k", through_time=False, online=True, steps_kept=2),
        rival("feedback-alignment", weights="random"),
        rival("feedback-alignment-refreshed", weights="refreshed"),
        rival("usf", weights="uniform-sign"),
        rival("brsf", weights="batch-sign"),
        rival("frsf", weights="fixed-sign"),
        rival("direct-feedback-alignment", weights="direct"),
        rival("drtp", weights="target"),
    ]
