"""What stands in place of a wrapped model's call, and of its parts' calls: it follows whatever the model is by then.

`nn.Module.__call__` asks the module for `_compiled_call_impl` before anything else. A stand-in there leaves `forward` free
for others to replace (a trainer's fused head, autocast, adapters) and runs whatever the module is when it is called,
hooks and all. Each part of the model has a stand-in, too: inside a run of the whole it only says where the run is; called
by itself, as a training step may do, it gives feedback like the whole.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..composites.composite import Composite, log_unmoved
from ..engine.options import Options
from ..engine.plan import Plan
from ..errors import InputError, TraceError
from ..live.engine import LiveEngine, changes_gradients
from ..live.interception import recorder
from ..live.parameters import Watch
from ..tracing.flat import is_tracing
from .choice import HOOKS, Choice, Explanation
from .forward import FeedbackForward
from .programs import Entry, ModelCall

__all__ = ["CallStandIn", "Wrapping", "wrapping_of"]

log = logging.getLogger("lfpgraph")
_local = threading.local()
_SLOT, _MARK = "_compiled_call_impl", "_lfpgraph"  # a module's copies and pickles drop the first, and keep the second


class CallStandIn:
    """The call of one module of a wrapped model.

    Args:
        module: the module. path: its dotted name in the wrapped model, "" for the model itself.
        wrapping: what all stand-ins of the model share.
    """

    runs_the_module = True  # as it is, so that who watches the module's attributes has seen all there is to its call

    def __init__(self, module: nn.Module, path: str, wrapping: Wrapping) -> None:
        self.module, self.path, self.wrapping = module, path, wrapping

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        record = recorder()
        if record is None:
            return self.wrapping.run(self, args, kwargs)
        before, record.path = record.path, self.path
        try:
            return self.module._call_impl(*args, **kwargs)
        finally:
            record.path = before

    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]  # a compiled function that calls it compiles none of it

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.place()

    def place(self) -> None:
        """Put this object in place of the module's call."""
        self.module.__dict__[_SLOT] = self.module.__dict__[_MARK] = self

    def remove(self) -> None:
        """Give the module its own call back."""
        for name in (_SLOT, _MARK):
            if self.module.__dict__.get(name) is self:
                del self.module.__dict__[name]


_frames = torch._C._dynamo.eval_frame
_frames.set_code_exec_strategy(  # a compiled model, too, runs all of it as it is
    CallStandIn.__call__.__code__, _frames._FrameExecStrategy(_frames._FrameAction.SKIP, _frames._FrameAction.SKIP)
)


def wrapping_of(model: nn.Module) -> Wrapping | None:
    """The wrapping that a module is the model of, if any; a part of a wrapped model is not wrapped itself."""
    found = model.__dict__.get(_MARK)
    return found.wrapping if isinstance(found, CallStandIn) and found.path == "" else None


def _unrecorded() -> list[Wrapping]:
    """The wrappings whose model this thread runs without gradients; what it turns on inside is its own business."""
    try:
        return _local.unrecorded  # type: ignore[no-any-return]
    except AttributeError:
        _local.unrecorded = []
        return _local.unrecorded


def _somebody_traces() -> bool:
    """Whether torch.export, jit.trace or a tracer on fake tensors runs the module, which wants it as it is."""
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return fake is not None or torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def _runs_again() -> bool:
    """Whether a checkpoint runs its part again, only to have what autograd saved; feedback goes through the first run."""
    if torch._C._current_graph_task_id() == -1:
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__qualname__.startswith("_recomputation_hook")


@dataclass
class _Counts:
    """How often the model has run, and how."""

    live: int = 0
    static: int = 0


class Wrapping:
    """A wrapped model: its options, its engines, and the choice between them.

    Args:
        engine: "auto", "static" or "live" (see `wrap`).
    """

    def __init__(self, model: nn.Module, composite: Composite, options: Options, engine: str) -> None:
        self.model, self.composite, self.options = model, composite, options
        self.choice = Choice(engine, composite, options)
        self.watch = Watch(type(model).__name__)
        self.counts = _Counts()
        self._static: FeedbackForward | None = None
        self._live: dict[str, LiveEngine] = {}
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        new: dict[str, Any] = {
            "counts": _Counts(),
            "_static": None,
            "_live": {},
            "_told": False,
            "choice": self.choice.anew(),
        }
        return {**vars(self), **new}

    def place(self) -> None:
        """Put stand-ins in place of the calls of the model and of all its parts that have none."""
        for path, module in self.model.named_modules():
            if _MARK not in module.__dict__:
                CallStandIn(module, path, self).place()
        if changes_gradients(self.composite):
            self.watch.add(self.model.named_parameters())

    def remove(self) -> None:
        """Undo `place`."""
        for module in self.model.modules():
            found = module.__dict__.get(_MARK)
            if isinstance(found, CallStandIn) and found.wrapping is self:
                found.remove()
        self.watch.close()

    def run(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        """Call a module of the model from outside of any run of it."""
        module = part.module
        if is_tracing() or _somebody_traces() or _runs_again() or self in _unrecorded():
            return module._call_impl(*args, **kwargs)
        if not torch.is_grad_enabled():
            _unrecorded().append(self)
            try:
                return module._call_impl(*args, **kwargs)
            finally:
                _unrecorded().pop()
        if torch._C._functorch.peek_interpreter_stack() is not None:
            if changes_gradients(self.composite):
                self.watch.transformed()
            return module._call_impl(*args, **kwargs)
        choice, call = self.choice, None
        if part.path == "" and choice.settled and choice.static:
            self.counts.static += 1
            result = self._statically(args, kwargs)
            self._tell()
            return result
        if self.watch.differentiates and not choice.settled:
            choice.live(
                self.model, "second derivatives are asked for (create_graph=True), which a program does not have"
            )
        if part.path == "" and not choice.settled:
            call = ModelCall(module, args, kwargs)
            entry = self._program_for(call) if call.follows else None
            if entry is not None:
                self.counts.static += 1
                return self.static.run(entry, call)
        if not changes_gradients(self.composite):  # nothing is recorded, so the parts of a run come here, too
            self.counts.live += part.path == ""
            return module._call_impl(*args, **kwargs)
        self.counts.live += 1
        engine = self._engine(part)
        if part.path:
            return engine.run(module._call_impl, args, kwargs)
        if call is None or choice.settled or not call.follows:
            result = engine.run(module._call_impl, args, kwargs)
        else:
            result = choice.observe(call, lambda: engine.run(module._call_impl, args, kwargs))
        self._tell()
        return result

    def _tell(self) -> None:
        """Say once, after the first call, which parameters receive nothing."""
        plans = [] if self._told else self.all_plans()
        if plans:
            self._told = True
            log_unmoved(self.composite, dict(self.model.named_parameters()), plans[-1].names_asleep)

    @property
    def static(self) -> FeedbackForward:
        """The static engine."""
        if self._static is None:
            feed = self.watch.feed if changes_gradients(self.composite) else None
            self._static = FeedbackForward(self.model, self.composite, self.options, feed=feed)
        return self._static

    def _program_for(self, call: ModelCall) -> Entry | None:
        found = None
        try:
            found = self.choice.program_for(call, self.static)
        except (InputError, TraceError) as error:
            self.choice.live(self.model, str(error))
        if self.choice.settled:
            self.static.programs.kept.clear()
        return found

    def _statically(self, args: Any, kwargs: Any) -> Any:
        own = vars(self.model)
        if not any(own[table] for table in HOOKS):
            return self.static(*args, **kwargs)
        before = own.get("forward")  # hooks on the model itself run around the program as around its forward
        own["forward"] = self.static
        try:
            return self.model._call_impl(*args, **kwargs)
        finally:
            if before is None:
                del own["forward"]
            else:
                own["forward"] = before

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
        static = [] if self._static is None else [entry.program.plan for entry in self._static.programs]
        return static + [schedule.plan for engine in self._live.values() for schedule in engine.schedules.values()]

    @property
    def plans(self) -> int:
        """How many sequences of operations have been planned, live."""
        return sum(engine.plans for engine in self._live.values())

    @property
    def traces(self) -> int:
        """How many times the model has been traced."""
        return 0 if self._static is None else self._static.traces

    def explain(self) -> Explanation:
        """Which engine runs, and why."""
        return self.choice.explain(self.counts.live, self.counts.static, self.plans, self.traces)
