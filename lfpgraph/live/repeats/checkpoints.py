"""What a checkpoint runs again in the backward pass, recorded, so that autograd saves as much as it did the first time."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..interception import recording
from ..notes import tensors_among

__all__ = ["record_again"]


class _Again:
    """In place of a checkpoint's function: the function, recorded.

    Args:
        make: makes a record.

    Attributes:
        given: by identity, what the function reads of the run around it that autograd does not follow, but what it was made of;
            and whether it had a shadow (`bridges.Shadows`). Of what the function makes itself none is alive by then.
    """

    def __init__(self, function: Callable[..., Any], make: Callable[[], Any]) -> None:
        self.function, self.make = function, make
        self.given: dict[int, tuple[weakref.ref[Tensor], bool]] = {}

    def __call__(self, *args: Any) -> None:
        with contextlib.closing(self.make()) as record:
            for ref, shadowed in self.given.values():
                if (x := ref()) is not None:
                    (record.shadows.take_for_followed if shadowed else record.sources.take_for_made)(x)
            with recording(record):
                self.function(*args)


def record_again(record: Any, make: Callable[[], Any], args: Any, kwargs: Any) -> None:
    """Let a checkpoint around the step at hand record what it runs again.

    Args:
        record: of the run at hand. make: makes one like it.
        args, kwargs: what the step was given.
    """
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or not hooks[0].__qualname__.startswith("_checkpoint_hook"):
        return
    frame = dict(zip(hooks[0].__code__.co_freevars, hooks[0].__closure__))["frame"].cell_contents
    if not isinstance(frame.recompute_fn, _Again):
        frame.recompute_fn = _Again(frame.recompute_fn, make)
    for x in tensors_among(args, kwargs):
        if id(x) in record.shadows.noted or record.sources.has(x):
            frame.recompute_fn.given[id(x)] = weakref.ref(x), id(x) in record.shadows.noted
