"""Sees each ATen operation that this thread runs, whole and before autograd does.

PyTorch's dispatcher has a key in front of autograd, PreDispatch, that torch.export traces with. While a thread records,
the key is switched on for it, and every operation calls the thread's `Recorder`, which runs the operation as ever (autograd,
autocast and all) and notes what it was. Composite operations such as `linear` arrive whole; those that take functions
(`torch.cond`, `scan`) are opened: what the functions do arrives.

Two methods of torch are wrapped once, when a model is first recorded: `OpOverload._get_dispatch`, which torch asks for an
operation's handler under that key if it knows none, and `HigherOrderOperator.dispatch`. Both do what they always did in
threads that do not record; so does the constructor of tensors of the user's classes, which is wrapped in each.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._higher_order_ops.utils import _in_hop_compile
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..tracing import flat

__all__ = [
    "Recorder",
    "compile_calls_anew",
    "hide",
    "paused",
    "recorder",
    "recording",
    "resumed",
    "seen",
    "show",
    "unrecorded",
]

PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
_FAKE = torch._C._TorchDispatchModeKey.FAKE
_PYTHON = torch._C.DispatchKey.PythonDispatcher
include = torch._C._dispatch_tls_set_dispatch_key_included
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
without_python = torch._C._DisablePythonDispatcher
_transform = torch._C._functorch.peek_interpreter_stack
_mode_of = torch._C._get_dispatch_mode


class _Local(threading.local):
    recorder: Any = None


_TRUE = torch.tensor(True)
_local, _lock = _Local(), threading.Lock()
_wrapped = False
_classes: list[type] = []  # of tensors, whose constructors have been looked at
_recordings = 0  # running now, in all threads


class Recorder(Protocol):
    """What a thread that records calls for each operation."""

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and return its result; called with recording paused."""

    def again(self) -> None:
        """Let a checkpoint around what runs now be recorded when it runs again."""


def recorder() -> Any:
    """This thread's recorder, or None."""
    return _local.recorder


class recording:
    """Let this thread's operations go to a recorder, in place of that of a recording around it."""

    def __init__(self, new: Recorder) -> None:
        self._new = new

    def __enter__(self) -> None:
        _wrap_torch()
        if len(Tensor.__subclasses__()) != len(_classes):
            _wrap_classes()
        self._before, self._optimized = recorder(), torch._C._get_graph_executor_optimize()
        _as_written(1)
        _local.recorder = self._new
        flat.RUNS += 1
        # TorchScript would make one operation of many, from its third run on
        torch._C._set_graph_executor_optimize(False)
        include(PRE_DISPATCH, True)
        self._dispatcher = torch._C._EnablePythonDispatcher()
        self._dispatcher.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._dispatcher.__exit__(*raised)
        flat.RUNS -= 1
        _local.recorder = self._before
        _as_written(-1)
        torch._C._set_graph_executor_optimize(self._optimized)
        include(PRE_DISPATCH, self._before is not None)


class _AsWritten:
    """What `torch.compile` is told to do while somebody records: in that thread, run what is compiled as it was written.

    Only so are its operations seen. What torch itself compiles in order to run it (`torch.cond`, say) is compiled.
    """

    def __init__(self, before: Any) -> None:
        self.before = before

    @property
    def stance(self) -> Any:
        as_written = recorder() is not None and not _in_hop_compile()
        return "force_eager" if as_written else self.before.stance

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)


def _as_written(change: int) -> None:
    """One recording more, or one less."""
    global _recordings
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")  # not imported for this: it takes seconds
    with _lock:
        _recordings += change
        if frames is None:
            return
        if _recordings and not isinstance(frames._stance, _AsWritten):
            frames._stance = _AsWritten(frames._stance)
        elif not _recordings and isinstance(frames._stance, _AsWritten):
            frames._stance = frames._stance.before


def compile_calls_anew() -> bool:
    """Let torch.compile, once it has been imported, ask of each module that it meets what stands in place of its call.

    It takes the call of a plain module for its forward, and does not ask again: code compiled for a plain module would run
    a wrapped one of the same class as if it were plain. What has been compiled so far is dropped.

    Returns:
        Whether anything has been dropped.
    """
    modules: Any = sys.modules.get("torch._dynamo.variables.nn_module")
    if getattr(modules, _SHORTCUT, None) is None:
        return False
    setattr(modules, _SHORTCUT, None)
    dropped = bool(torch._dynamo.convert_frame.input_codes.seen)
    torch._dynamo.reset_code_caches()
    return dropped


_SHORTCUT = "unpatched_nn_module_call_impl"  # with which a module's own `_call_impl` is compared


def hide() -> None:
    """Let nobody see the operations to come, in a thread that records; quicker than `paused`."""
    include(PRE_DISPATCH, False)
    include(_PYTHON, False)


def show() -> None:
    """End `hide`."""
    include(_PYTHON, True)
    include(PRE_DISPATCH, True)


class paused:
    """Run operations unseen, in a thread that records or not."""

    def __enter__(self) -> None:
        self._dispatcher = None if recorder() is None else without_python()
        if self._dispatcher is not None:
            include(PRE_DISPATCH, False)
            self._dispatcher.__enter__()

    def __exit__(self, *raised: Any) -> None:
        if self._dispatcher is not None:
            self._dispatcher.__exit__(*raised)
            include(PRE_DISPATCH, True)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Run something that is no part of what this thread records, and may itself record, or trace."""
    before = recorder()
    with paused():
        _local.recorder = None
        try:
            yield
        finally:
            _local.recorder = before


@contextlib.contextmanager
def resumed() -> Iterator[None]:
    """Inside `Recorder.run`: record what runs here, as the parts of the operation at hand."""
    include(PRE_DISPATCH, True)
    try:
        with torch._C._EnablePythonDispatcher():
            yield
    finally:
        include(PRE_DISPATCH, False)


def seen(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite operation's own implementation, so that the operations it is made of are recorded."""
    with resumed():
        return op._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def _handler_of(op: OpOverload) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        current = _local.recorder
        if current is None:  # another thread's tracer has switched the key on, and the handler is its business
            op._dispatch_cache.pop(PRE_DISPATCH, None)
            return op._op(*args, **kwargs)
        include(PRE_DISPATCH, False)
        try:
            with without_python():
                if _mode_of(_FAKE) is not None:  # a compiler looks ahead
                    return op._op(*args, **kwargs)
                return current.run(op, args, kwargs)
        finally:
            include(PRE_DISPATCH, True)

    return handler


def _wrap_torch() -> None:
    global _wrapped
    if _wrapped:
        return
    with _lock:
        if _wrapped:
            return
        _wrapped = True
        get_dispatch, dispatch = OpOverload._get_dispatch, HigherOrderOperator.dispatch

        def get_dispatch_or_record(self: OpOverload, key: Any) -> Any:
            if recorder() is not None and key == PRE_DISPATCH:
                handler = self._dispatch_cache[PRE_DISPATCH] = _handler_of(self)
                return handler
            return get_dispatch(self, key)

        def dispatch_opened(self: HigherOrderOperator, key: Any, /, *args: Any, **kwargs: Any) -> Any:
            if recorder() is None or key != PRE_DISPATCH:
                return dispatch(self, key, *args, **kwargs)
            made_of = self.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
            with paused():
                # Not from here, a compiler looks ahead, or by a transform of torch.func, in which nothing is recorded
                if made_of is None or _get_current_dispatch_mode() is not None or _transform() is not None:
                    return self(*args, **kwargs)
                recorder().again()
                with resumed():
                    return (_branch if self._name == "cond" else made_of)(*args, **kwargs)

        OpOverload._get_dispatch = get_dispatch_or_record  # type: ignore[method-assign]
        HigherOrderOperator.dispatch = dispatch_opened  # type: ignore[assignment,method-assign]


def _branch(condition: Any, if_true: Any, if_false: Any, operands: Any) -> Any:
    """`torch.cond`: only the branch that is taken is run; what the other one alone reads gets zeros, as from torch."""
    branch = if_true if condition else if_false
    out = branch(*operands)
    reads = [node for node in branch.graph.nodes if node.op == "placeholder"] if hasattr(branch, "graph") else []
    for node, x in zip(reads, operands):
        if not node.users and isinstance(x, Tensor) and x.requires_grad and x.numel():
            entry = x[(0,) * x.dim()]
            out = pytree.tree_map_only(Tensor, partial(_and_zeros, entry), out)
    return out


def _and_zeros(entry: Tensor, out: Tensor) -> Tensor:
    return torch.where(_TRUE, out, entry.to(out.dtype))


def _wrap_classes() -> None:
    """Let tensors of classes without a `__new__` of their own be made unseen.

    What Python has seen as a plain tensor torch turns into none of another class.
    """
    with _lock:
        for cls in set(Tensor.__subclasses__()).difference(_classes):
            if cls.__new__ is Tensor.__new__:
                cls.__new__ = staticmethod(_made_unseen)  # type: ignore[method-assign,assignment]
        _classes[:] = Tensor.__subclasses__()


def _made_unseen(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if recorder() is None or not _is_included(PRE_DISPATCH):
        return Tensor.__new__(cls, *args, **kwargs)
    with paused():
        return Tensor.__new__(cls, *args, **kwargs)
