"""The ways of training that `compare` knows by name: every composite, and those that are no composite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..composites.composite import Composite, composite_names, get_composite
from ..errors import CompositeError, near
from .perturbation import zeroth_order

__all__ = ["METHODS", "RATES", "Method", "method_named"]

RATES = (1e-3, 3e-3, 1e-2)
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A way of training.

    Attributes:
        composite: what the model is wrapped with; None leaves it to autograd.
        optimizer: a class of torch.optim.
        rates: a grid of its own, where the usual one does not fit.
        clip: the largest norm of all gradients together; None for none.
        gradients: given the loss, makes a function of model, batch and labels that sets each parameter's `.grad`.
    """

    name: str
    composite: str | Composite | None
    optimizer: str = "AdamW"
    rates: tuple[float, ...] | None = None
    clip: float | None = 1.0
    gradients: Callable[[Loss], Callable[[nn.Module, Tensor, Tensor], None]] | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("backprop", None),
        Method("fa", "feedback-alignment"),
        Method("fa-refreshed", "feedback-alignment-refreshed"),
        Method("dfa", "direct-feedback-alignment"),
        Method(
            "mezo",
            None,
            optimizer="SGD",
            rates=(1e-4, 1e-3, 1e-2),
            clip=None,
            gradients=lambda loss: zeroth_order(1e-3, loss),
        ),
    )
}


def method_named(way: str | Composite | Method) -> Method:
    """The method of a name, which may be a composite's.

    Raises:
        CompositeError: unknown name.
    """
    if isinstance(way, Method):
        return way
    if isinstance(way, Composite):
        return Method(way.name, way)
    if way in METHODS:
        return METHODS[way]
    if way not in composite_names():
        known = [*METHODS, *composite_names()]
        raise CompositeError(f"unknown way {way!r}{near(way, known)}; known: {', '.join(known)}")
    return Method(way, get_composite(way))
