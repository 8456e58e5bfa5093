"""Models for reports, of fake tensors wherever that is possible, so that they take no memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import TargetError, first_line
from .limits import limited, told

__all__ = ["LARGEST_REAL", "Built", "ModelTarget", "weightless"]

log = logging.getLogger("lfpgraph")
LARGEST_REAL = 1_000_000_000  # parameters of a model that may be made with weights to be traced: 4 GB in float32
Built = tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any] | None]


@dataclass
class ModelTarget:
    """A model to report on. `args` and `kwargs` are None where inputs are to be worked out from the model.

    `rebuild` gives the same model and inputs of real tensors, where those here are fake.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    rebuild: Callable[[], Built] | None = field(default=None, repr=False)


def weightless(name: str, build: Callable[[], Built]) -> ModelTarget:
    """The model that `build` makes, of fake tensors; of real ones where its constructor reads values.

    Raises:
        TargetError: it cannot be built, or only with more weights than `LARGEST_REAL`.
    """
    error: Exception | None = None
    with limited(name):
        for drawing in (contextlib.nullcontext, _no_initial_values):
            try:
                with FakeTensorMode(allow_non_fake_inputs=True), drawing():
                    model, args, kwargs = build()
                if drawing is _no_initial_values and hasattr(model, "tie_weights"):
                    getattr(model, "tie_weights")()  # noqa: B009 - transformers ties weights only when it draws them
                return ModelTarget(name, model, args, kwargs, rebuild=build)
            except Exception as caught:
                log.info("%s cannot be built without weights: %s", name, first_line(caught))
                error = caught
        size, again = _size_on_meta(build)
    assert error is not None
    if size > LARGEST_REAL:
        raise TargetError(
            f"{name} cannot be built without weights, and has {size:,} of them: {first_line(error)}"
        ) from error
    if again is not None and str(again) == str(error):  # whatever its tensors are made of
        raise _unbuilt(name, error) from error
    try:
        with limited(name, 60, 4 * size + 2**30):
            return ModelTarget(name, *build())
    except Exception as again:
        raise _unbuilt(name, again) from again


def _unbuilt(name: str, error: Exception) -> TargetError:
    if isinstance(error, TargetError):
        return error
    return TargetError(f"{name} cannot be built: {told(error)}")


@contextlib.contextmanager
def _no_initial_values() -> Iterator[None]:
    """Keep transformers from drawing weights: some ways of drawing read numbers, and fake tensors hold none."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        yield
        return
    with no_init_weights():
        yield


def _size_on_meta(build: Callable[[], Built]) -> tuple[int, Exception | None]:
    """How many parameters the model has; 0 and why, where that cannot be told without making them."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build()[0].parameters()), None
    except Exception as error:
        return 0, error
