"""Which engine runs a wrapped model: the static one where it is provably the model, the live one elsewhere."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..composites.composite import Composite
from ..engine.options import Options
from ..errors import LiveOnlyError
from ..graph.calls import flatten_output
from ..live.engine import changes_gradients
from ..tracing.guards import Observation
from .model_call import ModelCall

__all__ = ["ENGINES", "Choice", "Explanation"]

log = logging.getLogger("lfpgraph")
ENGINES = ("auto", "static", "live")
_CHANGES, _TRACES, _OBSERVED, _MOST_OBSERVED = 3, 4, 4, 12  # more than so many, and the model runs live
LIVE_FIRST = 100  # calls after which a trace has paid for itself, if it will (docs/design.md, "When auto traces")
_SIZES = 2  # programs that differ in sizes alone, as one for a batch of one does; a model that needs more runs live


@dataclass(frozen=True)
class Explanation:
    """Which engine runs a wrapped model, since when and why.

    Attributes:
        engine: "live" or "static", as of the next call.
        why: the reason, in a sentence.
        since: the number of the first call that this engine ran, or will run, without another one since; calls count from 1.
        live_calls, static_calls: how many calls each has run so far.
        plans: sequences of operations that the live engine has planned. traces: graphs of the static one.
    """

    engine: str
    why: str
    since: int
    live_calls: int
    static_calls: int
    plans: int
    traces: int

    def __str__(self) -> str:
        return (
            f"{self.engine} since call {self.since}: {self.why} ({self.live_calls} calls live, {self.plans} plans; "
            f"{self.static_calls} calls static, {self.traces} traces)"
        )


class Choice:
    """The engine of one model's calls.

    With "auto", a model's first calls run live. Of those after them, the first of each kind (structure, dtypes, modes, plain
    values) is observed. If it did nothing that a program cannot keep, the next one is traced, and run statically for as long
    as nothing changes that the program depends on (`StaticEngine`).

    Args:
        engine: what the user asked for.
    """

    def __init__(self, engine: str, composite: Composite, options: Options) -> None:
        self.asked, self.composite, self.options = engine, composite, options
        self.harmless: set[Any] = set()  # kinds of calls that were observed last, and may be traced
        self.observed = self.changes = 0
        self.static, self.settled = engine == "static", engine != "auto"
        self.first = (
            LIVE_FIRST  # a number of calls, not a time, so that two runs of a script change engines at the same step
        )
        self.why = f"engine={engine!r} was asked for" if self.settled else f"its first {self.first} calls run live"
        needs = [name for name, given in (("compile", options.compile), ("memory", options.memory != "fast")) if given]
        needs += [f"composite {composite.name!r}"] if composite.online else []
        if engine == "auto" and needs:
            self.static, self.settled, self.why = True, True, f"{' and '.join(needs)} need the static engine"
        elif engine == "auto" and not changes_gradients(composite):
            self.settled, self.why = True, "the composite is the gradient, which the model's own run gives"

    def wants_static(self, model: nn.Module, kind: Any, has_program: bool, changed: str | None) -> bool:
        """Whether the next call runs statically.

        Args:
            kind: of call. has_program: there is a program for it. changed: what it depended on and is otherwise by now.
        """
        if changed is not None:
            self.changes += 1
            log.info("%s is observed again, since %s", type(model).__name__, changed)
            if self.changes > _CHANGES:
                self.live(model, f"what it depends on keeps changing: {changed}")
            self.static = False
        else:
            self.static = has_program or kind in self.harmless
        self.harmless.discard(kind)
        return self.static

    def live(self, model: nn.Module, why: str) -> None:
        """Run the model live from now on."""
        self.static, self.settled, self.why = False, True, why
        self.harmless.clear()
        log.info("%s runs live: %s", type(model).__name__, why)

    def limit(self, model: nn.Module, alike: int, traces: int, has_program: bool) -> None:
        """Run a model live that would have to be traced again and again.

        Args:
            alike: programs for calls of this kind, none of which may fit its sizes. traces: of the model so far.
        """
        if not has_program and (alike >= _SIZES or traces >= _TRACES):
            self.live(model, f"it has been traced {traces} times, for inputs of other kinds or sizes")

    def observe(self, call: ModelCall, run: Callable[[], Any]) -> Any:
        """Run a live call, and see whether the static engine can take the next ones of its kind."""
        model = call.model
        with contextlib.ExitStack() as stack:
            try:
                seen = stack.enter_context(Observation(model))
            except LiveOnlyError as error:
                self.live(model, str(error))
                return run()
            result = run()
        self.observed += 1
        if seen.why_live is not None and not (seen.may_settle and self.observed < _OBSERVED):
            self.live(model, seen.why_live)
        elif call.has_changed():
            self.live(model, "it writes into a container among its arguments, such as a key-value cache")
        elif self.observed > _MOST_OBSERVED:
            self.live(model, f"it has been observed {self.observed} times, and its calls still differ")
        elif seen.why_live is None and seen.guard is not None:
            self.harmless.add(call.kind)
            self.static, self.why = True, "nothing in its call is lost in a program, and nothing it reads has changed"
            log.info("%s runs by the static engine from its next call on: %s", type(model).__name__, self.why)
            self._watch(model, flatten_output(result)[0])
        else:
            self.why = seen.why_live or "its call was not observed to the end"
        return result

    def _watch(self, model: nn.Module, outputs: list[Tensor]) -> None:
        """See in the backward pass whether the caller has written into outputs in place: a program's feedback may need them."""
        for out in outputs:
            if out.grad_fn is not None:
                out.register_hook(functools.partial(self._look, model, out.detach(), out._version))

    def _look(self, model: nn.Module, output: Tensor, version: int, _: Tensor) -> None:
        if output._version != version and not self.settled:
            self.live(model, "an output is written into in place after the call")
