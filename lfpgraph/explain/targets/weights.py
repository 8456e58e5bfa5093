"""What is explained: a target, as the signal at each of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ...errors import AttributionError, LfpGraphError, NonFiniteError, first_line

__all__ = ["Contrast", "refuse_nan", "target_signals", "value_of", "weights_of"]


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
        rebuild: makes the model's own output from such a list.

    Raises:
        AttributionError: the target does not fit the outputs.
    """
    if callable(target) and not isinstance(target, Tensor):
        return _of_function(target, outputs, rebuild)
    floats = [i for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.is_floating_point() and o.dim() > 0]
    if not floats:
        raise AttributionError("the model has no float output with a dimension; explain one by target=function")
    signals: list[Any] = [None] * len(outputs)
    which = f", the first of its {len(floats)} float outputs," if len(floats) > 1 else ""
    signals[floats[0]] = weights_of(target, outputs[floats[0]], which)
    return signals


def refuse_nan(outputs: Sequence[Any], signals: Sequence[Any], inputs: Sequence[Tensor]) -> None:
    """Refuse to explain what is NaN or infinite.

    Raises:
        NonFiniteError: an output that has a signal is.
    """
    for o, s in zip(outputs, signals):
        if s is not None and not bool(torch.where(s == 0, 0.0, o * s).isfinite().all()):
            faulty = any(t.is_floating_point() and not bool(t.isfinite().all()) for t in inputs)
            where = "an input holds NaN or infinity" if faulty else "the inputs are finite: look at the model's weights"
            raise NonFiniteError(f"what is explained is NaN or infinite; {where}")


def weights_of(target: Any, output: Tensor, which: str = "") -> Tensor:
    """A target as weights of the output's entries, of its shape; the explained value is the weighted sum.

    Args:
        which: for messages, which of several outputs this is.

    Raises:
        AttributionError: the target does not fit the output.
    """
    if isinstance(target, Contrast):
        return weights_of(target.a, output) - weights_of(target.b, output)
    if target is None:
        if output.shape[1:].numel() != 1:
            raise AttributionError(
                f"the model returns {list(output.shape)}{which} and target= does not say which of it to explain; give a class "
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
    weights, shape = torch.zeros_like(output), list(output.shape)
    if len(place) > output.dim() - 1:
        raise AttributionError(
            f"target={place} has {len(place)} indices, but the output of shape {shape} has only "
            f"{output.dim() - 1} dimensions behind the batch"
        )
    if not all(isinstance(index, Integral) and not isinstance(index, bool) for index in place):
        raise AttributionError(f"target={place} must hold whole numbers, one for each dimension behind the batch")
    for index, size in zip(place, output.shape[1:]):
        if not -size <= index < size:
            raise AttributionError(f"target={place}: {index} is out of range for the output of shape {shape}")
    weights[(slice(None),) + place] = 1
    return weights


def _at_classes(target: Any, output: Tensor) -> Tensor:
    """Ones at a class of the last dimension: the same for all, or one for each sample (and place)."""
    try:
        classes = torch.as_tensor(target, device=output.device)
    except (RuntimeError, TypeError, ValueError):
        within = " within a Contrast" if callable(target) else ""
        raise AttributionError(
            f"target={target!r} cannot be explained{within}; see the docstring of lfpgraph.attribute"
        ) from None
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise AttributionError(f"target={target!r} is no class index")
    classes = classes.to(torch.int64)  # bytes have no -1 to compare with
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
        output = rebuild(leaves)
        value = value_of(function, output, "target's function")
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise AttributionError(
                "target's function must return a tensor computed from the model's output with a derivative, not "
                f"{type(value).__name__}"
            )
        asked = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        found = iter(torch.autograd.grad(value.sum(), asked, allow_unused=True))
    return [next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]


def value_of(function: Callable[[Any], Any], output: Any, what: str) -> Any:
    """What a caller's function makes of the model's output.

    Args:
        what: for messages, what the function is.

    Raises:
        AttributionError: it fails.
    """
    try:
        return function(output)
    except LfpGraphError:
        raise
    except Exception as error:
        given = f"tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise AttributionError(
            f"{what} fails on the model's output, a {given}: {type(error).__name__}: {first_line(error)}"
        ) from error
