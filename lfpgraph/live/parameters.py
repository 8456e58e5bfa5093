"""What becomes of the signals that reach parameters, and of backward passes that are differentiated themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..engine.plan import Plan
from .watch import Watch

__all__ = ["Scale", "is_differentiated", "replaced"]


class Scale:
    """Turns a parameter's signal into feedback: where all its uses come together, and where a custom function reads it."""

    def __init__(self, plan: Plan, placeholder: fx.Node, plain: bool, parameter: Tensor, watch: Watch | None) -> None:
        self.plan, self.placeholder, self.plain, self.parameter, self.watch = plan, placeholder, plain, parameter, watch

    def feedback(self, s: Tensor) -> Tensor:
        """The feedback of the signal s."""
        found = s if self.plain else self.plan.feedback(self.placeholder, self.parameter.detach(), s)
        if self.watch is not None:
            self.watch.feed(self.parameter, found)
        return found

    def before(self, signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook on the one alias that a run takes the parameter through."""
        return None if signals[0] is None or is_differentiated() else (self.feedback(signals[0]),)

    def at(self, slot: int) -> Any:
        """A hook on a function that hands a gradient to the parameter itself."""

        def after(signals: tuple[Any, ...], _: Any) -> tuple[Any, ...] | None:
            if signals[slot] is None or is_differentiated():
                return None
            return replaced(signals, {slot: self.feedback(signals[slot])})

        return after


def is_differentiated() -> bool:
    """Whether this backward pass is itself recorded (`create_graph=True`), for a derivative that is a part of the loss.

    Such a derivative is the true one; feedback flows when the loss is propagated.
    """
    return torch.is_grad_enabled()


def replaced(signals: tuple[Any, ...], new: dict[int, Tensor]) -> tuple[Any, ...]:
    """The signals, some of them replaced."""
    return tuple(new.get(i, s) for i, s in enumerate(signals))
