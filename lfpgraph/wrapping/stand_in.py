"""An object in place of a module's `forward`: seen as the forward it stands in for, copied with its module, taken off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["StandIn"]


class StandIn:
    """Base of what `wrap` puts in place of `model.forward`; a subclass says what a call does.

    Name, docstring and signature are those of the model's own forward. Copies and pickles of the model carry theirs along.
    """

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
        return {name: value for name, value in vars(self).items() if name != "__wrapped__"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look_like(state["model"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def place(self) -> None:
        """Stand in from now on."""
        self.model.__dict__["forward"] = self

    def restore(self, model: nn.Module) -> None:
        """Give a module back what it had before; a shallow copy of the module shares its stand-in."""
        if self.replaced is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = self.replaced
