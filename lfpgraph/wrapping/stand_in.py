"""An object in place of a module's `forward`: it looks like that forward, is copied with its module, and can be removed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["StandIn"]


class StandIn:
    """Base of what `wrap` puts in place of `model.forward`; a subclass says what a call does.

    Name, docstring and signature are those of the model's own forward. A copy or pickle of the model has a stand-in of its own.

    Attributes:
        calls: how many calls it has taken so far, of those that are to give feedback.
    """

    calls = 0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.replaced = model.__dict__.get("forward")
        self._look_like(model)

    def _look_like(self, model: nn.Module) -> None:
        functools.update_wrapper(self, type(model).forward, updated=())

    @property
    def original(self) -> Callable[..., Any]:
        """The model's own forward."""
        return self.replaced if self.replaced is not None else type(self.model).forward.__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("__wrapped__", "calls")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look_like(state["model"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def place(self) -> None:
        """Put this object in place of the model's forward."""
        self.model.__dict__["forward"] = self

    def restore(self, model: nn.Module) -> None:
        """Give a module its own forward back: the stand-in's model, or a shallow copy of it, which has the same stand-in."""
        if self.replaced is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = self.replaced
