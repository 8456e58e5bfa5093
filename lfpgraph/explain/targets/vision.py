"""What a segmenter or a detector is asked: targets that are functions of such a model's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import AttributionError

__all__ = ["Box", "Segment"]


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
