"""What becomes of the signals that reach parameters: feedback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.plan import How, Plan
from ..errors import NonFiniteError, WrapError
from ..kernels import scale_small
from .arrivals.references import owned
from .arrivals.watch import Watch, feed

__all__ = ["Scale", "is_differentiated", "note_second", "refuse_batched", "replaced", "tap"]


_grad = torch.is_grad_enabled
_pass = torch._C._current_graph_task_id  # the number of the backward pass that this thread is in; -1 for none
_is_batched = torch._C._dispatch_tls_is_dispatch_key_included
_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


def tap(record: Any, number: int, given: list[Any], place: int, check: bool, watch: Watch | None) -> None:
    """Note the signal at one of the outputs, `given[place]`, when it arrives."""
    edge = record.edge_of.get(number)
    if edge is None:
        return
    node, index = edge

    def note(signals: tuple[Any, ...]) -> None:
        given[place] = s = signals[index]
        if watch is not None and is_differentiated():
            watch.second()
        if check and s is not None and not bool(torch.isfinite(s).all()):
            raise NonFiniteError("the signal given to the outputs holds NaN or infinity")

    node.register_prehook(note)


def note_second(node: Any, slot: int, watch: Watch) -> None:
    """Tell of a second derivative when a signal arrives at an output, where nothing else looks at it."""

    def note(signals: tuple[Any, ...]) -> None:
        if _grad() and signals[slot] is not None:
            watch.second()

    node.register_prehook(note)


class Scale:
    """Turns a parameter's signal into feedback: where all its uses come together, and where a custom function reads it.

    A custom function may call a part of the model again in its backward (the adjoint of a differential equation), and hand
    on what that run, which is one inside a backward pass, has given the parameter: that is feedback already.
    """

    __slots__ = ("plan", "how", "parameter", "shape", "watch", "outer")

    def __init__(self, plan: Plan, how: How, parameter: Tensor, shape: torch.Size, watch: Watch | None) -> None:
        self.plan, self.how, self.parameter, self.shape, self.watch = plan, how, parameter, shape, watch
        self.outer = _pass()  # the backward pass in which the model runs

    def feedback(self, s: Tensor, over: bool = False) -> Tensor:
        """The feedback of the signal s; written over it, if it may be."""
        if _is_batched(_VMAP):
            refuse_batched()
        parameter, how = self.parameter, self.how
        if self.outer != -1 and self.watch is not None:
            self.watch.inside.add((self.outer, id(parameter)))
        if how.plain:
            found = s
        elif parameter.shape != self.shape:
            raise WrapError(
                f"a parameter of shape {list(self.shape)} in forward has shape {list(parameter.shape)} when its feedback is "
                "worked out, so abs(w) * s cannot be: what takes its memory away must give it back before."
            )
        elif how.small and type(s) is Tensor and not s.is_cuda and parameter.layout is torch.strided:
            found = scale_small(s, parameter.detach(), how.share, how.unit)
        else:
            found = self.plan.feedback(how.placeholder, parameter.detach(), s, over)
        if self.watch is not None:
            feed(parameter, found)
        return found

    def before(self, signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook on the autograd node of the one alias that a run takes the parameter through."""
        if signals[0] is None or is_differentiated():
            return None
        over = owned(signals, 0)  # before anything here refers to the signal
        return (self.feedback(signals[0], over),)

    def at_alias(self, s: Tensor | None) -> Tensor | None:
        """The same as a hook on the alias itself."""
        return None if s is None or torch.is_grad_enabled() else self.feedback(s)

    def at(self, slot: int) -> Any:
        """A hook on a function that hands a gradient to the parameter itself."""

        def after(signals: tuple[Any, ...], _: Any) -> tuple[Any, ...] | None:
            if signals[slot] is None or is_differentiated():
                return None
            if self.watch is not None and (_pass(), id(self.parameter)) in self.watch.inside:
                feed(self.parameter, signals[slot])
                return None
            return replaced(signals, {slot: self.feedback(signals[slot])})

        return after


def refuse_batched() -> None:
    """Refuse signals that stand for many at once, of which torch's batched tensors do not know every operation of a rule."""
    if _is_batched(_VMAP):
        raise WrapError(
            "many backward passes at once are asked for (is_grads_batched=True, vectorize=True), and the rules of feedback do "
            "not run on such a batch; ask for them one after the other."
        )


def is_differentiated() -> bool:
    """Whether this backward pass is itself recorded (`create_graph=True`), for a derivative that is a part of the loss.

    Such a derivative is the true one; feedback flows when the loss is propagated.
    """
    return torch.is_grad_enabled()


def replaced(signals: tuple[Any, ...], new: dict[int, Tensor]) -> tuple[Any, ...]:
    """The signals, some of them replaced."""
    return tuple(new.get(i, s) for i, s in enumerate(signals))
