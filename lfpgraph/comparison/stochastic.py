"""Stochastic binary neurons: three ways to learn through draws of on and off (Bengio, Leonard and Courville 2013).

A neuron draws h ~ Bernoulli(p), in the model's own code as `torch.bernoulli(p)`. Nothing of the model is changed: the draws are
noticed while it runs.

| way | what p learns by | what the neuron hands on |
|---|---|---|
| `unbiased` | `(L - b) d log P(h) / dp`, which is `(h - p) (L - b)` at a for `p = sigmoid(a)` | h |
| `through-draws` | the signal of h, as if h were p (straight-through) | h |
| `smooth-draws` | the gradient (noise injection: stochastic times smooth) | `c sqrt(p)`, `c ~ Bernoulli(sqrt(p))` |

L is the loss of the sample, and `b = sum (h - p)^2 L / sum (h - p)^2` over the others of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .learners import Learner, output_of

__all__ = ["SmoothDraws", "ThroughDraws", "Unbiased"]

_DRAWS = {torch.bernoulli, Tensor.bernoulli}


class _Draws(TorchFunctionMode):
    """Notices draws of on and off whose chances autograd follows, and puts something in their place."""

    def __init__(self, learner: _Stochastic) -> None:
        super().__init__()
        self.learner = learner
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _DRAWS or not args[0].requires_grad or len(args) > 1 or "p" in (kwargs or {}):
            return func(*args, **(kwargs or {}))
        p = args[0]
        h = self.learner.drawn(p, lambda chances: func(chances, **(kwargs or {})))
        self.found.append((p, h))
        return h


class _Stochastic(Learner):
    def drawn(self, p: Tensor, draw: Any) -> Tensor:
        """What the neuron hands on."""
        raise NotImplementedError

    def _run(self, inputs: Any) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        with _Draws(self) as draws:
            outputs = output_of(self.model, inputs)
        if not draws.found:
            raise InputError(
                f"{type(self.model).__name__} draws nothing by torch.bernoulli(p) of chances that are learnt, so it has no "
                "stochastic neurons"
            )
        return outputs, draws.found

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        self.loss(self._run(inputs)[0], labels).backward()


class ThroughDraws(_Stochastic):
    """Straight-through: h = p in the backward pass."""

    def drawn(self, p: Tensor, draw: Any) -> Tensor:
        return draw(p.detach()) + p - p.detach()


class SmoothDraws(_Stochastic):
    """Noise injection: `b sqrt(p)` in place of h while it learns; h when it is asked."""

    def drawn(self, p: Tensor, draw: Any) -> Tensor:
        root = p.clamp_min(1e-12).sqrt()
        return draw(root.detach()) * root


class Unbiased(_Stochastic):
    """The estimator whose mean is the gradient of the mean loss (equation 4 of the paper), with the baseline of equation 11.

    The baseline is that of the other samples of the batch, so that the mean stays right; the paper has a moving average.
    """

    def drawn(self, p: Tensor, draw: Any) -> Tensor:
        return draw(p.detach())

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        outputs, draws = self._run(inputs)
        losses = torch.stack([self.loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
        objective = losses.mean()
        for p, h in draws:
            if p.shape[:1] != losses.shape:
                raise InputError(f"chances {list(p.shape)} do not begin with the batch of {len(losses)}")
            error = losses.detach().reshape(-1, *[1] * (p.dim() - 1))
            weight = (h - p.detach()).square()
            others, share = (weight * error).sum(0) - weight * error, weight.sum(0) - weight
            baseline = others / share.clamp_min(1e-12)
            log_chance = torch.where(h > 0.5, p, 1 - p).clamp_min(1e-12).log()
            objective = objective + ((error - baseline) * log_chance).sum() / len(losses)
        objective.backward()
