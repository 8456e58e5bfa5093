"""What is explained: a target, as the signal at each of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import AttributionError, LfpGraphError, NonFiniteError, first_line

__all__ = ["Box", "Contrast", "Segment", "refuse_nan", "target_signals", "value_of", "weights_of"]


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


def _part(out: Any, names: tuple[str, ...], what: str) -> Tensor:
    """The first part of an output that has one of these names; the output itself if it is a tensor."""
    if isinstance(out, Tensor):
        return out
    for name in names:
        found = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
        if isinstance(found, Tensor):
            return found
    known = ", ".join(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
    raise AttributionError(f"the model's output ({known}) has no {what}; expected one of {', '.join(names)}")


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise AttributionError(f"{name}={value!r} must be a whole number")


@dataclass(frozen=True)
class Segment:
    """Why a segmenter gives a class to the places of a mask: the sum of the class's logits there.

    Attributes:
        label: the class, of logits [n, classes, height, width] (the output, `.logits`, or `["out"]`).
        mask: [height, width] or [n, height, width] of any size; None for the places where the class is predicted.
    """

    label: int
    mask: Tensor | None = None

    def __call__(self, out: Any) -> Tensor:
        _check_whole("label", self.label)
        if not isinstance(self.mask, Tensor | None):
            raise AttributionError(f"mask must be a tensor [h, w] or [n, h, w], not {type(self.mask).__name__}")
        logits = _part(out, ("logits", "out", "sem_seg", "pred_masks"), "logits of places")
        if logits.dim() != 4 or not -logits.shape[1] <= self.label < logits.shape[1]:
            raise AttributionError(
                f"logits of shape {list(logits.shape)} are no [n, classes, h, w] with a class {self.label}"
            )
        if self.mask is None:
            inside = logits.argmax(1) == self.label % logits.shape[1]
        else:
            mask = self.mask[None] if self.mask.dim() == 2 else self.mask
            if mask.dim() != 3 or len(mask) not in (1, len(logits)) or 0 in mask.shape or mask.is_complex():
                raise AttributionError(f"a mask of shape {list(self.mask.shape)} is no [h, w] or [{len(logits)}, h, w]")
            inside = interpolate(mask[:, None].to(logits), logits.shape[2:], mode="nearest")[:, 0] > 0.5
        if not bool(inside.flatten(1).any(1).all()):
            raise AttributionError(
                f"class {self.label} is at no place of the mask, or predicted nowhere, in some sample"
            )
        return (logits[:, self.label] * inside).flatten(1).sum(1)


@dataclass(frozen=True)
class Box:
    """Why a detector of queries (DETR and its kin) gives a class to a box, or why the box lies where it does.

    Attributes:
        label: the class, of logits [n, queries, classes]; None for the one that the box's query has most of.
        query: which query; or `box`, for the query whose box overlaps most with this one, [4] of x, y of the centre, width and
            height, as shares of the image. Without both, the query with the largest logit of the class.
        side: None for the class's logit; 0 to 3 for the box's x, y, width or height.
    """

    label: int | None = None
    query: int | None = None
    box: tuple[float, float, float, float] | None = None
    side: int | None = None

    def __call__(self, out: Any) -> Tensor:
        logits = _part(out, ("logits", "pred_logits"), "logits of queries")
        if logits.dim() != 3:
            raise AttributionError(f"logits of shape {list(logits.shape)} are no [n, queries, classes]")
        count, classes = logits.shape[1:]
        for name, value, most in (("label", self.label, classes), ("query", self.query, count), ("side", self.side, 4)):
            if value is not None:
                _check_whole(name, value)
                if not 0 <= value < most:
                    raise AttributionError(f"{name}={value} is out of range: 0 to {most - 1}")
        if self.query is not None and self.box is not None:
            raise AttributionError("a target is the query of a number or that of a box; give query= or box=, not both")
        rows = torch.arange(len(logits), device=logits.device)
        query = self._query(out, logits)
        if self.side is not None:
            return _part(out, ("pred_boxes",), "boxes")[rows, query, self.side]
        chosen = logits[rows, query]
        label = chosen.argmax(1) if self.label is None else torch.full_like(rows, self.label)
        return chosen[rows, label]

    def _query(self, out: Any, logits: Tensor) -> Tensor:
        """The query of each sample [n]."""
        if self.query is not None:
            return torch.full((len(logits),), self.query, device=logits.device)
        if self.box is not None:
            if isinstance(out, Tensor):
                raise AttributionError("box= needs an output with pred_boxes; this model returns logits alone")
            boxes = _part(out, ("pred_boxes",), "boxes").detach()
            try:
                sides = torch.as_tensor(self.box, dtype=boxes.dtype, device=boxes.device)
            except (TypeError, ValueError, RuntimeError):
                sides = boxes.new_zeros(0)
            if sides.shape != (4,) or not bool(sides.isfinite().all()):
                raise AttributionError(
                    f"box={self.box!r} must be four numbers: x and y of the centre, width and height"
                )
            return _overlap(boxes, sides).argmax(1)
        scores = logits.detach()
        return (scores.amax(2) if self.label is None else scores[..., self.label]).argmax(1)


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] with one [4], all as centre, width and height."""
    low, high = (
        torch.stack([b[..., :2] + sign * b[..., 2:] / 2 for b in (boxes, box.expand_as(boxes))]) for sign in (-1, 1)
    )
    inner = (high.amin(0) - low.amax(0)).clamp_min(0).prod(-1)
    whole = (high - low).prod(-1).sum(0)
    return inner / (whole - inner).clamp_min(1e-12)
