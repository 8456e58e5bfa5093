"""Optimizers as plain functions of tensors, so that they trace into the step. The numbers are those of torch.optim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "Optimizer", "clip_by_norm"]

Tensors = list[Tensor]
Options = dict[str, float]


@dataclass(frozen=True)
class Optimizer:
    """One optimizer.

    Attributes:
        defaults: its numbers, by name.
        state: parameter names -> (state name, position of the parameter whose shape it has, or None for a number).
        step: parameters, feedback, state, learning rate and numbers -> new parameters and new state.
    """

    defaults: Options
    state: Callable[[Sequence[str]], list[tuple[str, int | None]]]
    step: Callable[[Tensors, Tensors, Tensors, Tensor, Options], tuple[Tensors, Tensors]]


def _sgd(parameters: Tensors, feedback: Tensors, state: Tensors, rate: Tensor, options: Options) -> Any:
    return [p - rate * g for p, g in zip(parameters, feedback)], []


def _momentum(parameters: Tensors, feedback: Tensors, state: Tensors, rate: Tensor, options: Options) -> Any:
    """`buffer = momentum * buffer + g`, without dampening."""
    buffers = [m * options["momentum"] + g for m, g in zip(state, feedback)]
    return [p - rate * m for p, m in zip(parameters, buffers)], buffers


def _adam(parameters: Tensors, feedback: Tensors, state: Tensors, rate: Tensor, options: Options) -> Any:
    """Adam (Kingma and Ba 2015).

    The bias corrections `1 - beta ** t` are state, kept by `c = beta * c + (1 - beta)`: exact in float32 from the first
    step on, where the power would lose digits.
    """
    beta1, beta2, n = options["beta1"], options["beta2"], len(parameters)
    corrections = [state[2 * n] * beta1 + (1 - beta1), state[2 * n + 1] * beta2 + (1 - beta2)]
    size, root = rate / corrections[0], torch.sqrt(corrections[1])

    def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensors:
        m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
        return [p - size * m / (torch.sqrt(v) / root + options["epsilon"]), m, v]

    moved, first, second = _joined(update, parameters, feedback, state[:n], state[n : 2 * n])
    return moved, [*first, *second, *corrections]


def _joined(update: Callable[..., Tensors], *columns: Tensors) -> Any:
    """An elementwise update row by row, vectors of one size as one: a runtime takes its time to open and run each operator."""
    groups: dict[Any, list[int]] = {}
    for i, p in enumerate(columns[0]):
        groups.setdefault(len(p) if p.dim() == 1 else ("alone", i), []).append(i)
    rows: dict[int, Sequence[Tensor]] = {}
    for places in groups.values():
        found = update(*(torch.cat([c[i] for i in places]) if len(places) > 1 else c[places[0]] for c in columns))
        parts = [x.chunk(len(places)) if len(places) > 1 else [x] for x in found]
        rows.update(zip(places, zip(*parts)))
    return zip(*(rows[i] for i in range(len(rows))))


def _adam_state(names: Sequence[str]) -> list[tuple[str, int | None]]:
    moments: list[tuple[str, int | None]] = [(f"mean/{name}", i) for i, name in enumerate(names)]
    moments += [(f"square/{name}", i) for i, name in enumerate(names)]
    return [*moments, ("correction/mean", None), ("correction/square", None)]


OPTIMIZERS = {
    "sgd": Optimizer({}, lambda names: [], _sgd),
    "momentum": Optimizer(
        {"momentum": 0.9}, lambda names: [(f"momentum/{n}", i) for i, n in enumerate(names)], _momentum
    ),
    "adam": Optimizer({"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}, _adam_state, _adam),
}


def clip_by_norm(feedback: Tensors, largest: float) -> Tensors:
    """All feedback scaled so that its norm is at most `largest`, as torch's `clip_grad_norm_` does it."""
    norm = torch.stack([(g * g).sum() for g in feedback]).sum().sqrt()
    factor = (largest / (norm + 1e-6)).clamp_max(1.0)
    return [g * factor for g in feedback]
