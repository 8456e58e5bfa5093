"""Which engine runs a wrapped model: the static one where it is provably the model, the live one elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..composites.composite import Composite
from ..engine.options import Options
from ..errors import TraceError

__all__ = ["ENGINES", "Choice", "Explanation"]

log = logging.getLogger("lfpgraph")
ENGINES = ("auto", "static", "live")


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

    Args:
        engine: what the user asked for.
    """

    def __init__(self, engine: str, composite: Composite, options: Options) -> None:
        self.asked, self.composite, self.options = engine, composite, options
        self.static, self.why = engine == "static", f"engine={engine!r} was asked for"
        if engine == "auto":
            needs = [
                name for name, given in (("compile", options.compile), ("memory", options.memory != "fast")) if given
            ]
            needs += [f"composite {composite.name!r}"] if composite.online else []
            self.static = bool(needs)
            self.why = f"{' and '.join(needs)} need the static engine" if needs else "the model itself runs"
        self.settled = engine != "auto" or self.static

    def anew(self) -> Choice:
        """The choice of a copy of the model."""
        return Choice(self.asked, self.composite, self.options)

    def wants_static(self, model: nn.Module) -> bool:
        """Whether the next call runs statically."""
        return self.static

    def settle_live(self, error: TraceError) -> None:
        """The model cannot be traced: run it live from now on, if the user left the choice; otherwise raise."""
        if self.asked == "static" or self.settled:
            raise error
        self.static, self.settled, self.why = False, True, str(error)
        log.info("live from now on: %s", error)

    def observe(self, model: nn.Module, call: Callable[[], Any]) -> Any:
        """Run a live call, and see whether the static engine could take the next ones."""
        return call()

    def explain(self, live: int, static: int, plans: int, traces: int) -> Explanation:
        """See `Explanation`."""
        return Explanation("static" if self.static else "live", self.why, live, static, plans, traces)
