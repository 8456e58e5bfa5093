"""How a call of a wrapped model runs: as it is, by the static engine, or live."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from ..composites.composite import Composite
from ..composites.unmoved import log_cut, log_idle, log_plain, log_stopped, log_unmoved
from ..engine.options import Options
from ..engine.plan import Plan
from ..errors import InputError, LiveOnlyError, NoRuleError, TraceError
from ..live.arrivals.watch import Watch, feed
from ..live.engine import LiveEngine, changes_gradients
from ..threads.turns import begin_run, end_run
from ..tracing.guards import is_observed_elsewhere
from .choice import Choice, Explanation
from .model_call import ModelCall
from .programs import Entry, Programs
from .stand_in import CallStandIn, stand_in_of
from .static_engine import StaticEngine
from .surroundings import hooks_of, in_checkpoint, in_force, modes, refuse_unreadable, wants_it_as_it_is

__all__ = ["Wrapping", "within_hooks", "wrapping_of"]

log = logging.getLogger("lfpgraph")


def wrapping_of(model: nn.Module) -> Wrapping | None:
    """The wrapping that a module is the model of, if any; a part of a wrapped model is not wrapped itself."""
    found = stand_in_of(model) if isinstance(model, nn.Module) else None
    if found is None or found.path:
        return None
    assert isinstance(found.wrapping, Wrapping)
    return found.wrapping


class _Local(threading.local):
    """Of one thread: the wrapped models that it runs without gradients. Those that they take inside are their own business."""

    def __init__(self) -> None:
        self.unrecorded: list[Wrapping] = []


_local = _Local()


class Wrapping:
    """A wrapped model: its options, its engines, and the choice between them.

    Args:
        engine: "auto", "static" or "live" (see `wrap`).
        path: where the model is in one that is wrapped in parts, for messages.
        like: programs that this model may share.
        watch: of the parameters; one of its own by default.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        options: Options,
        engine: str,
        path: str = "",
        like: Programs[Entry] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.model, self.composite, self.options, self.path = model, composite, options, path
        self.choice = Choice(engine, composite, options)
        self.watch, self.has_own_watch = (Watch(type(model).__name__), True) if watch is None else (watch, False)
        self.calls: dict[str, int] = {"live": 0, "static": 0}
        self.last, self.since = "", 1
        told = feed if changes_gradients(composite) else None
        self.static = StaticEngine(model, composite, options, path, like, told)
        self._live: dict[str, LiveEngine] = {}
        self._told = False
        self._thread: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**{n: getattr(self, n) for n in ("model", "composite", "options", "path")}, "engine": self.choice.asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy traces and plans for itself

    def again(self, model: nn.Module) -> Wrapping:
        """The wrapping of a shallow copy of the model, which has the same parameters."""
        return Wrapping(model, self.composite, self.options, self.choice.asked, watch=self.watch)

    def place(self) -> None:
        """Put stand-ins in place of the calls of the model and of all its parts that have none."""
        for path, module in self.model.named_modules():
            if stand_in_of(module) is None:
                CallStandIn(module, path, self).place()
        self._watch_parameters()

    def _watch_parameters(self) -> None:
        if changes_gradients(self.composite):
            dot = f"{self.path}." if self.path else ""
            self.watch.add((dot + name, parameter) for name, parameter in self.model.named_parameters())

    def remove(self) -> None:
        """Undo `place`."""
        for module in self.model.modules():
            found = stand_in_of(module)
            if found is not None and found.wrapping is self:
                found.remove()
        if self.has_own_watch:
            self.watch.close()

    def run(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        """Call a module of the model from outside of any run of it."""
        if wants_it_as_it_is() or self in _local.unrecorded:
            return part.run_module(*args, **kwargs)
        if part.path and is_observed_elsewhere(part.module):  # by a thread that may wait for this call
            return self._run(part, args, kwargs, observed=True)
        begin_run(self.model)
        try:
            return self._run(part, args, kwargs, observed=False)
        except RuntimeError as error:
            refuse_unreadable(self.path, self.model, error)
            raise
        finally:
            end_run()

    def _run(self, part: CallStandIn, args: Any, kwargs: Any, observed: bool) -> Any:
        if not torch.is_grad_enabled():
            _local.unrecorded.append(self)
            try:
                return part.run_module(*args, **kwargs)
            finally:
                _local.unrecorded.pop()
        static = self.choice.static and self.choice.settled and part.path == ""
        if not static and torch._C._current_graph_task_id() != -1 and in_checkpoint("_recomputation_hook"):
            # only to have what autograd saved: feedback goes through the first run
            return part.run_module(*args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None or (static and forward_ad._current_level >= 0):
            if changes_gradients(self.composite):
                self.watch.transformed()
            return part.run_module(*args, **kwargs)
        if observed:
            return self._lively(part, args, kwargs)
        if not self._told:
            self._watch_parameters()
        if static:
            result = self._statically(part, args, kwargs)
        elif part.path == "" and not self.choice.settled:
            result = self._by_choice(part, args, kwargs)
        else:
            result = self._lively(part, args, kwargs)
        self._tell()
        return result

    def _tell(self) -> None:
        """Say once, after the first call, which parameters receive nothing, and which rules are used nowhere."""
        plans = [] if self._told else self.all_plans()
        if plans:
            self._told = True
            log_unmoved(self.composite, plans[-1].used(self.model.named_parameters()), plans[-1].names_awake)
            log_idle(self.composite, self.model, logging.INFO)
            log_cut(plans[-1].names_cut)
            log_stopped(plans[-1].stopped)
            log_plain(type(self.model).__name__, [plan.graph for plan in plans])

    def _by_choice(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        module, choice = part.module, self.choice
        if self._thread not in (None, threading.get_ident()):
            choice.live(module, "several threads call it")
        if self.watch.differentiated:
            choice.live(module, "second derivatives are asked of it (create_graph=True)")
        self._thread = threading.get_ident()
        early = self.calls["live"] < choice.first
        if early or choice.settled or forward_ad._current_level >= 0 or in_checkpoint("_checkpoint_hook"):
            return self._lively(part, args, kwargs)
        if hooks_of(module) or modes() or in_force(module):  # a program knows nothing of them
            choice.static, choice.why = False, "there are hooks on the model itself, or modes around its call"
            return self._lively(part, args, kwargs)
        call = ModelCall(module, args, kwargs)
        if call.odd is not None:
            choice.live(module, f"it is given a {type(call.odd).__name__}, which a program cannot follow")
        if choice.settled or not call.follows:
            return self._lively(part, args, kwargs)
        kind, entry = call.kind, self.static.programs.fitting(call)
        changed = None if entry is None else self.static.programs.changed(entry)
        choice.limit(module, len(self.static.programs.kept.get(kind, ())), self.traces, entry is not None)
        if choice.wants_static(module, kind, entry is not None, changed):
            try:
                result = self.static.run(call, entry if changed is None else None)
            # A rule may be missing in a program alone (torch.cond).
            except (TraceError, InputError, NoRuleError) as error:
                choice.live(module, str(error))
            else:
                self._count("static")
                return result
        if choice.settled:
            return self._lively(part, args, kwargs)
        if changed is not None:
            self.static.programs.forget()
        return choice.observe(call, lambda: self._lively(part, args, kwargs))

    def _lively(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        if part.path == "":
            self._count("live")
        return self._engine(part).run(part.run_module, args, kwargs, part)

    def _statically(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        found = [mode for mode in modes() if not (isinstance(mode, TorchDispatchMode) and mode.is_infra_mode())]
        if found:
            raise LiveOnlyError(
                f"{type(part.module).__name__} runs by the static engine, whose operations {type(found[-1]).__name__}, a mode "
                'around its call, would take for the model\'s own. wrap(model, engine="auto") or engine="live" runs the model.'
            )
        around = in_force(part.module)
        if around is not None:
            raise LiveOnlyError(
                f"{type(part.module).__name__} cannot run by the static engine while {around} in force. "
                'wrap(model, engine="auto") or engine="live" runs the model itself.'
            )
        self._count("static")
        return within_hooks(part, self.static, args, kwargs)

    def _count(self, engine: str) -> None:
        self.calls[engine] += 1
        if engine != self.last:
            self.last, self.since = engine, sum(self.calls.values())

    def _engine(self, part: CallStandIn) -> LiveEngine:
        found = self._live.get(part.path)
        if found is None:
            composite = self.composite.within(part.path) if part.path else self.composite
            found = self._live[part.path] = LiveEngine(
                part.module, composite, self.options.on_missing, self.options.check, self.watch, part.path, self.place
            )
        return found

    def all_plans(self) -> list[Plan]:
        """The plans of all that has run so far."""
        static = [entry.program.plan for entry in self.static.programs]
        return static + [schedule.plan for engine in self._live.values() for schedule in engine.schedules.values()]

    @property
    def plans(self) -> int:
        """How many sequences of operations have been planned, live."""
        return sum(engine.plans for engine in self._live.values())

    @property
    def traces(self) -> int:
        """How many times the model has been traced."""
        return self.static.traces

    def explain(self) -> Explanation:
        """Which engine runs, since when and why."""
        engine = "static" if self.choice.static else "live"
        since = self.since if engine == self.last else sum(self.calls.values()) + 1
        return Explanation(
            engine, self.choice.why, since, self.calls["live"], self.calls["static"], self.plans, self.traces
        )


_hooked = threading.RLock()


def within_hooks(part: CallStandIn, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a module's hooks as ever, and `run` where its forward would be called; `run` sees the module's own forward."""
    if not hooks_of(part.module):
        return run(*args, **kwargs)
    own = vars(part.module)

    def restore() -> None:
        own.pop("forward", None)
        own.update(before)

    def forward(*args: Any, **kwargs: Any) -> Any:
        restore()
        return run(*args, **kwargs)

    with _hooked:
        before = {name: own[name] for name in ("forward",) if name in own}
        own["forward"] = forward
        try:
            return part.run_module(*args, **kwargs)
        finally:
            restore()
