"""What is explained: a target of the model's outputs as signals, one per unit of output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import AttributionError

__all__ = ["Contrast", "target_signals"]


@dataclass(frozen=True)
class Contrast:
    """One target against another: the relevance of `a` minus that of `b`. Each is any target but a function."""

    a: Any
    b: Any


def target_signals(target: Any, outputs: Sequence[Any], rebuild: Callable[[Sequence[Any]], Any]) -> list[Any]:
    """The signal at each of the model's tensor outputs: the derivative of what is explained.

    Args:
        target: see `lfpgraph.attribute`.
        outputs: the model's tensor outputs, flat.
        rebuild: makes the model's own output of such a list.

    Raises:
        AttributionError: the target does not fit the outputs.
    """
    if callable(target) and not isinstance(target, Tensor):
        return _of_function(target, outputs, rebuild)
    floats = [i for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.is_floating_point() and o.dim() > 0]
    if not floats:
        raise AttributionError("the model has no float output with a dimension; explain one by target=function")
    signals: list[Any] = [None] * len(outputs)
    signals[floats[0]] = weights_of(target, outputs[floats[0]])
    return signals


def weights_of(target: Any, output: Tensor) -> Tensor:
    """A target as weights of the output's entries, of its shape; the explained value is the weighted sum.

    Raises:
        AttributionError: the target does not fit the output.
    """
    if isinstance(target, Contrast):
        return weights_of(target.a, output) - weights_of(target.b, output)
    if target is None:
        if output.dim() > 1 and output[0].numel() != 1:
            raise AttributionError(
                f"the model returns {list(output.shape)} and target= does not say which of it to explain; give a class "
                'index, one for each sample, lfpgraph.Contrast(a, b), "predicted", or a function of the output'
            )
        return torch.ones_like(output)
    if isinstance(target, str):
        if target != "predicted":
            raise AttributionError(f'target={target!r} is not known; the only name is "predicted"')
        target = output.argmax(-1)
    if isinstance(target, Tensor) and target.is_floating_point():
        if target.shape != output.shape:
            raise AttributionError(
                f"weights of shape {list(target.shape)} do not fit the output of shape {list(output.shape)}"
            )
        return target.to(output)
    if isinstance(target, tuple):
        return _at_place(target, output)
    return _at_classes(target, output)


def _at_place(place: tuple[Any, ...], output: Tensor) -> Tensor:
    """Ones where `output[:, *place]` is."""
    weights = torch.zeros_like(output)
    if len(place) > output.dim() - 1:
        raise AttributionError(
            f"target={place} has {len(place)} indices, but the output of shape {list(output.shape)} has only "
            f"{output.dim() - 1} dimensions behind the batch"
        )
    for index, size in zip(place, output.shape[1:]):
        if isinstance(index, int) and not -size <= index < size:
            raise AttributionError(
                f"target={place}: {index} is out of range for the output of shape {list(output.shape)}"
            )
    weights[(slice(None),) + place] = 1
    return weights


def _at_classes(target: Any, output: Tensor) -> Tensor:
    """Ones at a class of the last dimension: the same for all, or one for each sample (and place)."""
    classes = torch.as_tensor(target, device=output.device)
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise AttributionError(f"target={target!r} is no class index")
    if classes.dim() == 0 and output.dim() == 1 and output.shape[0] > 0 and int(classes) in (0, -1):
        return torch.ones_like(output)  # one value for each sample
    if classes.dim() == 0 and output.dim() > 2:
        raise AttributionError(
            f"target={target} is one index, but the output of shape {list(output.shape)} has {output.dim() - 1} dimensions "
            "behind the batch; give a tuple, such as (position, class)"
        )
    if output.dim() < 2 or classes.shape not in ((), output.shape[:-1]):
        raise AttributionError(
            f"target of shape {list(classes.shape)} does not fit the output of shape {list(output.shape)}; give one class "
            f"for all or one for each of {list(output.shape[:-1])}"
        )
    count = output.shape[-1]
    if classes.numel() and not bool(((classes >= -count) & (classes < count)).all()):
        raise AttributionError(f"target={target} is out of range: the output has {count} classes, 0 to {count - 1}")
    weights = torch.zeros_like(output)
    index = (classes % count).expand(output.shape[:-1]).unsqueeze(-1)
    return weights.scatter_(-1, index, 1.0)


def _of_function(function: Callable[[Any], Any], outputs: Sequence[Any], rebuild: Callable[[Any], Any]) -> list[Any]:
    """The derivative of a function of the model's output."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [
            o.detach().clone().requires_grad_() if isinstance(o, Tensor) and o.is_floating_point() else o
            for o in outputs
        ]
        value = function(rebuild(leaves))
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise AttributionError(
                "target's function must return a tensor computed from the model's output with a derivative, not "
                f"{type(value).__name__}"
            )
        asked = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        found = iter(torch.autograd.grad(value.sum(), asked, allow_unused=True))
    return [next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]
