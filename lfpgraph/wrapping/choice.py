"""Which engine runs a wrapped model: the static one where it is provably the model, the live one elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, NoneType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite
from ..engine.options import Options
from ..errors import InputError, TraceError
from ..live.engine import changes_gradients
from ..tracing.guards import Guard, Observation

__all__ = ["ENGINES", "MOST_SIZES", "Choice", "Explanation"]

log = logging.getLogger("lfpgraph")
ENGINES = ("auto", "static", "live")
_CHANGES, _TRACES, _OBSERVED, _KINDS = 3, 4, 4, 8  # more than so many, and the model runs live
_FLAT = {Tensor, nn.Parameter, NoneType, bool, int, float, str}  # arguments that hold no others
MOST_SIZES = 2  # programs that differ in sizes alone, as one for a batch of one does; a model that needs more runs live


@dataclass(frozen=True)
class Explanation:
    """Which engine runs a wrapped model, and why.

    Attributes:
        engine: "live" or "static", as of the next call.
        why: the reason, in a sentence.
        live_calls, static_calls: how many calls each has run so far.
        plans: sequences of operations that the live engine has planned. traces: graphs of the static one.
    """

    engine: str
    why: str
    live_calls: int
    static_calls: int
    plans: int
    traces: int

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.why} ({self.live_calls} calls live, {self.plans} plans; "
            f"{self.static_calls} calls static, {self.traces} traces)"
        )


class Choice:
    """The engine of one model's calls.

    With "auto", the first call in each mode, and with each structure of arguments, runs live and is observed. If it did
    nothing that a program cannot keep, later calls like it run statically for as long as nothing changes that the observed
    run has read (`tracing.guards`).

    Args:
        engine: what the user asked for.
    """

    def __init__(self, engine: str, composite: Composite, options: Options) -> None:
        self.asked, self.composite, self.options = engine, composite, options
        self.guards: dict[
            Any, Guard
        ] = {}  # by the modes of the model's modules and what the arguments are, sizes apart
        self.observed = self.changes = 0
        self.static, self.settled = engine == "static", engine != "auto"
        self.why = f"engine={engine!r} was asked for" if self.settled else "the model itself has not been called yet"
        needs = [name for name, given in (("compile", options.compile), ("memory", options.memory != "fast")) if given]
        needs += [f"composite {composite.name!r}"] if composite.online else []
        if engine == "auto" and needs:
            self.static, self.settled, self.why = True, True, f"{' and '.join(needs)} need the static engine"
        elif engine == "auto" and not changes_gradients(composite):
            self.settled, self.why = True, "the composite is the gradient, which the model's own run gives"

    def anew(self) -> Choice:
        """The choice of a copy of the model."""
        return Choice(self.asked, self.composite, self.options)

    def wants_static(self, model: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether a call runs statically."""
        if self.settled:
            return self.static
        kind = _modes(model), _structure(args, kwargs)
        guard = self.guards.get(kind)
        changed = None if guard is None else guard.changed()
        if changed is not None:
            del self.guards[kind]
            self.changes += 1
            log.info("%s is observed again, since %s", type(model).__name__, changed)
            if self.changes > _CHANGES:
                self.live(model, f"what it depends on keeps changing: {changed}")
        self.static = kind in self.guards
        return self.static

    def live(self, model: nn.Module, why: str) -> None:
        """Run the model live from now on."""
        self.static, self.settled, self.why = False, True, why
        self.guards.clear()
        log.info("%s runs live: %s", type(model).__name__, why)

    def refused(self, model: nn.Module, error: InputError | TraceError) -> None:
        """The model cannot be traced: run it live from now on, if the user left the choice; otherwise raise."""
        if self.settled:
            raise error
        self.live(model, str(error))

    def traced(self, model: nn.Module, traces: int) -> None:
        """Note how often the model has been traced: one that is traced again and again runs live."""
        if not self.settled and traces > _TRACES:
            self.live(model, f"it has been traced {traces} times, for sizes or structures of its inputs that differ")

    def observe(self, model: nn.Module, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
        """Run a live call, and see whether the static engine can take the next ones like it."""
        if self.settled:
            return call()
        kind, given = (_modes(model), _structure(args, kwargs)), pytree.tree_flatten((args, kwargs))
        with Observation(model) as seen:
            result = call()
        self.observed += 1
        if seen.why_live is not None and not (seen.may_settle and self.observed < _OBSERVED):
            self.live(model, seen.why_live)
        elif _differ(given, pytree.tree_flatten((args, kwargs))):
            self.live(model, "writes into a container among its arguments, such as a key-value cache")
        elif len(self.guards) >= _KINDS:
            self.live(model, f"is called with {_KINDS + 1} different structures of its arguments")
        elif seen.why_live is None and seen.guard is not None:
            self.guards[kind] = seen.guard
            self.static, self.why = True, "nothing in its call is lost in a program, and nothing it reads has changed"
        else:
            self.why = seen.why_live or "its call was not observed to the end"
        return result

    def explain(self, live: int, static: int, plans: int, traces: int) -> Explanation:
        """See `Explanation`."""
        return Explanation("static" if self.static else "live", self.why, live, static, plans, traces)


def _modes(model: nn.Module) -> tuple[bool, ...]:
    return tuple(module.training for module in model.modules())


def _structure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the arguments of a call are, sizes apart; equal for calls that may take the same way through the model."""
    values, spec = (*args, *kwargs.values()), (len(args), *kwargs)
    if any(type(value) not in _FLAT for value in values):
        values, spec = pytree.tree_flatten((args, kwargs))  # type: ignore[assignment]
    return spec, tuple((type(v), v.dtype, v.dim()) if isinstance(v, Tensor) else _told(v) for v in values)


def _told(value: Any) -> Any:
    """An argument that is no tensor, or where it cannot be compared with others, what it is."""
    return (type(value), value) if type(value) in _FLAT or isinstance(value, FunctionType) else type(value)


def _differ(before: tuple[list[Any], Any], after: tuple[list[Any], Any]) -> bool:
    """Whether flat arguments hold other objects than before."""
    return before[1] != after[1] or any(a is not b for a, b in zip(before[0], after[0]))
