"""Which engine runs a wrapped model: the static one where it is provably the model, the live one elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

from ..composites.composite import Composite
from ..engine.options import Options
from ..live.engine import changes_gradients
from ..tracing.guards import PLAIN, Guard, Observation
from .forward import FeedbackForward
from .programs import Entry, ModelCall

__all__ = ["ENGINES", "HOOKS", "Choice", "Explanation"]

log = logging.getLogger("lfpgraph")
ENGINES = ("auto", "static", "live")
_CHANGES, _TRACES, _OBSERVED, _MOST_OBSERVED = 3, 4, 4, 12  # more than so many, and the model runs live
_SIZES = 2  # programs that differ in sizes alone, as one for a batch of one does; a model that needs more runs live
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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

    With "auto", the first call of each kind (arguments, modes) runs live and is observed. If it did nothing that a program
    cannot keep, later ones run statically for as long as nothing changes that the observed run has read (`tracing.guards`).

    Args:
        engine: what the user asked for.
    """

    def __init__(self, engine: str, composite: Composite, options: Options) -> None:
        self.asked, self.composite, self.options = engine, composite, options
        self.seen: dict[
            Any, list[tuple[Any, Guard]]
        ] = {}  # by the key of calls: sizes, and the guard of an observed run
        self.observed = self.changes = 0
        self.static, self.settled = engine == "static", engine != "auto"
        self.why = f"engine={engine!r} was asked for" if self.settled else "no call has been observed yet"
        needs = [name for name, given in (("compile", options.compile), ("memory", options.memory != "fast")) if given]
        needs += [f"composite {composite.name!r}"] if composite.online else []
        if engine == "auto" and needs:
            self.static, self.settled, self.why = True, True, f"{' and '.join(needs)} need the static engine"
        elif engine == "auto" and not changes_gradients(composite):
            self.settled, self.why = True, "the composite is the gradient, which the model's own run gives"

    def anew(self) -> Choice:
        """The choice of a copy of the model."""
        return Choice(self.asked, self.composite, self.options)

    def program_for(self, call: ModelCall, static: FeedbackForward) -> Entry | None:
        """The program that runs a call; None where the model itself is to run it, observed.

        A program is used only where it is also right for a call that was observed: arguments of the same kind, and sizes that
        go the same way through the model. What an observed run has read is looked at each time.

        Raises:
            TraceError: the model cannot be traced.
        """
        seen = self.seen.get(call.key) if self.seen else None
        self.static = False
        if not seen:
            return None
        programs = static.programs
        entry, kept = programs.fitting(call), programs.kept.get(call.key, ())
        if entry is None and any(not any(e.sizes.fit(sizes) for e in kept) for sizes, _ in seen):
            if len(kept) == _SIZES or static.traces == _TRACES:
                self.live(call.model, f"it has been traced {static.traces} times, for inputs of other kinds or sizes")
                return None
            entry = static.find(call)
        guard = None if entry is None else next((guard for sizes, guard in seen if entry.sizes.fit(sizes)), None)
        changed = None if guard is None else guard.changed()
        if changed is not None:
            del self.seen[call.key], programs.kept[call.key]  # they are of the model as it was
            self.changes += 1
            log.info("%s is observed again, since %s", type(call.model).__name__, changed)
            if self.changes > _CHANGES:
                self.live(call.model, f"what it depends on keeps changing: {changed}")
            return None
        self.static = guard is not None
        return entry if self.static else None

    def live(self, model: nn.Module, why: str) -> None:
        """Run the model live from now on."""
        self.static, self.settled, self.why = False, True, why
        self.seen.clear()
        log.info("%s runs live: %s", type(model).__name__, why)

    def observe(self, call: ModelCall, run: Callable[[], Any]) -> Any:
        """Run a live call, and see whether the static engine can take calls like it."""
        unwatched = _unwatched(call)
        if unwatched is not None:
            self.live(call.model, unwatched)
            return run()
        with Observation(call.model) as seen:
            result = run()
        self.observed += 1
        if seen.why_live is not None and not (seen.may_settle and self.observed < _OBSERVED):
            self.live(call.model, seen.why_live)
        elif call.has_changed():
            self.live(call.model, "it writes into a container among its arguments, such as a key-value cache")
        elif self.observed > _MOST_OBSERVED:
            self.live(call.model, f"it has been observed {self.observed} times, and its calls still differ")
        elif seen.why_live is None and seen.guard is not None:
            self.seen.setdefault(call.key, []).append((call.shapes, seen.guard))
            self.static, self.why = True, "nothing in its call is lost in a program, and nothing it reads has changed"
        else:
            self.why = seen.why_live or "its call was not observed to the end"
        return result

    def explain(self, live: int, static: int, plans: int, traces: int) -> Explanation:
        """See `Explanation`."""
        return Explanation("static" if self.static else "live", self.why, live, static, plans, traces)


def _unwatched(call: ModelCall) -> str | None:
    """What a call depends on that no guard looks at."""
    name = type(call.model).__name__
    if any(vars(call.model)[table] for table in HOOKS):
        return f"hooks on {name} itself run around its forward"
    odd = next((leaf for leaf in call.leaves if not isinstance(leaf, (*PLAIN, Tensor, Enum))), None)
    return None if odd is None else f"it is given a {type(odd).__name__}, whose state a program would not follow"
