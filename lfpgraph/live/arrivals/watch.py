"""Watches what arrives at parameters, and says where it is no feedback."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..interception import compile_calls_anew
from ..notes import is_compressed

__all__ = ["Watch", "feed", "watching"]


log = logging.getLogger("lfpgraph")
_COMPARED = 2  # gradients of each parameter that are compared in value
_PASSES = 8  # backward passes of which is kept that feedback is on its way
_MANY = 4096  # parameters that are remembered to have had feedback inside a backward pass
_pass = torch._C._current_graph_task_id  # the number of the backward pass that this thread is in; -1 for none


class Watch:
    """Hooks on a model's parameters that compare what arrives with what the engine has handed on.

    A gradient reaches a parameter by other ways where the loss uses the parameter itself (`F.linear(h, model.head.weight)`),
    or where modules run that are not wrapped. The first two gradients of each parameter are compared in value, later ones
    only for whether anything came through feedback at all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._said: set[str] = set()
        self._said_else: set[str] = set()
        self._handles: list[Any] = []
        self.away: dict[int, int] = {}  # threads in which the model runs, and how many runs each is in
        # by backward pass, parameters that have had feedback in a run inside it
        self.inside: set[tuple[int, int]] = set()
        self.differentiated = False  # whether a second derivative has been asked for

    def __getstate__(self) -> dict[str, Any]:
        return vars(Watch(self.name))

    def add(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Watch these parameters, as far as they are not watched yet."""
        for name, parameter in parameters:
            found = self._watched.get(id(parameter))
            if is_lazy(parameter):
                continue
            if parameter.requires_grad and parameter.is_leaf and (found is None or found() is not parameter):
                self._watched[id(parameter)] = weakref.ref(parameter)
                arrival = _Arrival(self, name, parameter)
                self._handles.append(parameter.register_hook(arrival))
                key = id(parameter)
                _ARRIVALS.setdefault(key, []).append(weakref.ref(arrival, functools.partial(_forget, key)))

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched.clear()

    def second(self) -> None:
        """Say that a backward pass is itself to be differentiated, and so gives no feedback."""
        self.differentiated = True
        self._say_once(
            "a second derivative is asked for (create_graph=True). Such a backward pass hands back the true gradient, and so "
            "does a backward of the model's own that makes one inside (the adjoint of a differential equation); feedback flows "
            "when the loss itself is propagated without create_graph."
        )

    def transformed(self) -> None:
        """Say that a transform of torch.func runs the model."""
        self._say_once("inside transforms of torch.func (grad, vmap) the model gives its gradient, not feedback.")

    def begin(self) -> None:
        """A run begins in this thread; gradients that the model takes inside are its own business."""
        this = get_ident()
        self.away[this] = self.away.get(this, 0) + 1
        if len(self.inside) > _MANY and _pass() == -1:
            self.inside.clear()

    def end(self) -> None:
        """The run has ended."""
        this = get_ident()
        self.away[this] -= 1
        if not self.away[this]:
            del self.away[this]

    def _say_once(self, what: str) -> None:
        if what not in self._said_else:
            self._said_else.add(what)
            log.warning("%s: %s", self.name, what)

    def say(self, name: str, what: str) -> None:
        """Say once that a parameter's gradient is no feedback."""
        if not self._said:
            anew = " What torch.compile has made is made anew, in case it ran the model as a plain one of its class."
            log.warning(
                "%s: the parameter %s %s. The loss uses it, or a module that holds it, other than through the call of a "
                "wrapped module: call the module itself, or wrap the module whose call computes the loss.%s",
                self.name, name, what, anew if compile_calls_anew() else "",
            )  # fmt: skip
        self._said.add(name)


class _Arrival:
    """A hook of one parameter; does not keep the watch alive by more than the parameter.

    Attributes:
        compared: how many gradients have been compared in value; compares: whether further ones are.
        promised: how many runs have said that feedback will come, before any backward pass.
    """

    __torch_unserializable__ = True  # a pickle goes without it, and nobody need be warned

    def __init__(self, watch: Watch, name: str, parameter: Tensor) -> None:
        self.watch, self.name, self.parameter = weakref.ref(watch), name, weakref.ref(parameter)
        # by backward pass, of which threads may run several at once: feedback on its way; once none is compared, no tensors
        self._fed: dict[int, tuple[Tensor, ...]] = {}
        self.compared, self.compares, self.promised = 0, True, 0

    def tell(self, feedback: Tensor | None = None) -> None:
        """Note that feedback is on its way to the parameter in this backward pass."""
        fed, number = self._fed, _pass()
        parts = fed.get(number, ())
        fed[number] = parts if feedback is None or not self.compares else (*parts, feedback.detach())
        if len(fed) > _PASSES:  # some ended elsewhere than at the parameter
            for old in list(fed)[:-_PASSES]:
                fed.pop(old, None)

    def __call__(self, gradient: Tensor | None) -> None:
        """Compare a gradient that has arrived with the feedback that was on its way; None is no gradient at all."""
        watch = self.watch()
        if gradient is None or watch is None:
            return
        fed = self._fed.pop(_pass(), None)
        if watch.away:
            return
        if fed is None and self.promised:
            self.promised, fed = self.promised - 1, ()
        if fed is None:
            watch.say(self.name, "has received a gradient that is no feedback")
        elif self.compares:
            parameter = self.parameter()
            # the user's hooks may have changed it before
            if parameter is not None and len(parameter._backward_hooks or ()) == 1:
                self.compared += 1
                if fed and not gradient.is_sparse and not _equal(gradient, fed):
                    watch.say(self.name, "has received a gradient that is feedback only in part")
                if self.compared >= _COMPARED:
                    self.compares = False
                    for old in list(self._fed):  # not their keys: other threads may be on their way
                        self._fed[old] = ()


_ARRIVALS: dict[int, list[weakref.ref[_Arrival]]] = {}  # by the identity of a parameter


def watching(parameter: Tensor) -> list[_Arrival]:
    """The hooks of all who watch a parameter: a wrapped model may be inside another one."""
    return [arrival for ref in _ARRIVALS.get(id(parameter), ()) if (arrival := ref()) is not None]


def feed(parameter: Tensor, feedback: Tensor) -> None:
    """Note feedback that is on its way to a parameter, for all who watch it."""
    for ref in _ARRIVALS.get(id(parameter), ()):
        if (arrival := ref()) is not None:
            arrival.tell(feedback)


def _forget(key: int, ref: weakref.ref[_Arrival]) -> None:
    _ARRIVALS[key].remove(ref)
    if not _ARRIVALS[key]:
        del _ARRIVALS[key]


def _equal(gradient: Tensor, parts: Sequence[Tensor]) -> bool:
    if is_compressed(gradient) and all(is_compressed(p) for p in parts):
        gradient, parts = gradient.values(), [p.values() for p in parts]
    if gradient.is_meta or (len(parts) == 1 and type(gradient) is Tensor and gradient.is_set_to(parts[0])):
        return True
    with torch.no_grad():
        total = parts[0] if len(parts) == 1 else torch.stack([p.to(gradient.dtype) for p in parts]).sum(0)
        scale = float(gradient.abs().max()) if gradient.numel() else 0.0
        return bool(((gradient - total).abs() <= 1e-2 * scale + 1e-12).all()) or not bool(
            torch.isfinite(gradient).all()
        )
