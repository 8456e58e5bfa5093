"""The ways of training that `compare` knows by name: every composite, and those that are no composite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..composites.composite import Composite, composite_names, get_composite
from ..errors import CompositeError, near
from ..wrapping.wrapper import wrap
from . import forward_only, local
from .learners import Learner, Loss
from .stochastic import SmoothDraws, ThroughDraws, Unbiased

__all__ = ["METHODS", "RATES", "Method", "method_named", "methods_named"]

RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Method:
    """A way of training.

    Attributes:
        composite: what the model is wrapped with; None leaves it to autograd.
        optimizer: a class of torch.optim.
        rates: a grid of its own, where the usual one does not fit.
        clip: the largest norm of all gradients together; None for none.
        learner: makes what sets the gradients, of model, loss and the inputs of a batch.
    """

    name: str
    composite: str | Composite | None = None
    optimizer: str = "AdamW"
    rates: tuple[float, ...] | None = None
    clip: float | None = 1.0
    learner: Callable[[nn.Module, Loss, Any], Learner] = Learner

    def learner_of(self, model: nn.Module, loss: Loss, inputs: Any) -> Learner:
        """What trains a model in this way; a composite wraps the model.

        Raises:
            LfpGraphError: the way cannot train this model.
        """
        if self.composite is not None:
            wrap(model, self.composite)
        return self.learner(model, loss, inputs)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("backprop"),
        Method("fa", "feedback-alignment"),
        Method("fa-refreshed", "feedback-alignment-refreshed"),
        Method("dfa", "direct-feedback-alignment"),
        Method("local", learner=local.LocalLosses),
        Method("auglocal", learner=local.AugLocal),
        Method("man", learner=local.MomentumAuxiliary),
        Method("tpsgd", learner=local.TargetProjection),
        Method("counter-current", learner=local.CounterCurrent),
        Method("forward-forward", learner=local.ForwardForward),
        Method("forward-gnn", learner=local.ForwardGNN),
        Method("unbiased", learner=Unbiased),
        Method("through-draws", learner=ThroughDraws),
        Method("smooth-draws", learner=SmoothDraws),
        Method("noprop", learner=forward_only.NoProp),
        Method("mezo", optimizer="SGD", rates=(1e-4, 1e-3, 1e-2), clip=None, learner=forward_only.MeZO),
        Method("es", learner=forward_only.EvolutionStrategy),
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


def methods_named(ways: Sequence[str | Composite | Method]) -> list[Method]:
    """The methods of several names.

    Raises:
        CompositeError: unknown names, all of them in one line.
    """
    known = [*METHODS, *composite_names()]
    wrong = [way for way in ways if isinstance(way, str) and way not in known]
    if len(wrong) > 1:
        named = "; ".join(f"{way!r}{near(way, known).replace(';', ',')}" for way in wrong)
        raise CompositeError(f"unknown ways {named}; known: {', '.join(known)}")
    return [method_named(way) for way in ways]
