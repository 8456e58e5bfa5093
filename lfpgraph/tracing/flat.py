"""A model as a function of flat tensors, whatever its arguments and outputs are made of."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import _ModuleStackTracer
from torch.utils import _pytree as pytree
from torch.utils import checkpoint

from ..errors import TraceError
from ..graph.calls import flatten_input, flatten_output
from ..threads.turns import one_at_a_time, wait_for_traces

__all__ = [
    "FlatModel",
    "attributes_of",
    "given",
    "hide_from_compile",
    "is_running_plainly",
    "is_tracing",
    "running_plainly",
    "tracing",
]


log = logging.getLogger("lfpgraph")


class _State(threading.local):
    """Of one thread: how many traces are running, one inside the other, and how many runs in which nothing is wrapped."""

    depth = 0
    plain = 0


_state = _State()
RUNS = 0  # how many runs, in all threads, call the parts of wrapped models; torch.compile looks at it


def hide_from_compile(function: Any) -> None:
    """Let torch.compile run a function, or its code, those inside it and all that they call as they are."""
    frames, code = torch._C._dynamo.eval_frame, getattr(function, "__code__", function)
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))
    for inner in code.co_consts:
        if hasattr(inner, "co_consts"):
            hide_from_compile(inner)


def is_tracing() -> bool:
    """Whether this thread is tracing a model, so that wrapped modules must run their own forward."""
    return _state.depth > 0


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Mark this thread as tracing, one thread at a time.

    Its checkpoints run plainly meanwhile: the reentrant kind has no gradients, and of one inside another torch.export loses
    them. Inference mode is no_grad to it, since torch.export does not see the other. Its distributions do not look at their
    parameters' values, unless one is asked to by `validate_args=True`. Derivatives that it takes itself are refused, and
    so is what is cut off in place. Of a hook that it sets on a tensor, which is not in a trace, the log has a line. A view
    that a tensor's memory does not allow is a reshape. The modules that other threads call are none of torch's tracer's.
    """
    wait_for_traces()
    with one_at_a_time():
        before = _state.depth
        _state.depth = before + 1
        if not before:
            setattr(checkpoint.CheckpointFunction, "apply", _apply_or_run)  # noqa: B010
            vars(checkpoint)[_GENERATOR] = _generate_or_run
            setattr(torch.inference_mode, "__enter__", _enter_or_no_grad)  # noqa: B010
            vars(eager_transforms).update({name: _refused(begin) for name, begin in _BEGIN.items()})
            setattr(Tensor, "register_hook", _register_and_tell)  # noqa: B010
            setattr(Tensor, "detach_", _detach_or_refuse)  # noqa: B010
            setattr(Tensor, "view", _view_or_reshape)  # noqa: B010
            setattr(_ModuleStackTracer, "call_module", _call_or_note)  # noqa: B010
            setattr(_ModuleStackTracer, "getattr", _read_or_note)  # noqa: B010
            validates = _Validates(Distribution._validate_args)
            setattr(Distribution, "_validate_args", validates)  # noqa: B010
        try:
            yield
        finally:
            _state.depth -= 1
            if not before:
                del checkpoint.CheckpointFunction.apply
                vars(checkpoint)[_GENERATOR] = _generate
                setattr(torch.inference_mode, "__enter__", _enter)  # noqa: B010
                vars(eager_transforms).update(_BEGIN)
                setattr(Tensor, "register_hook", _register)  # noqa: B010
                setattr(Tensor, "detach_", _detach)  # noqa: B010
                setattr(Tensor, "view", _view)  # noqa: B010
                setattr(_ModuleStackTracer, "call_module", _call_module)  # noqa: B010
                setattr(_ModuleStackTracer, "getattr", _read)  # noqa: B010
                if vars(Distribution)["_validate_args"] is validates:  # nobody has set another default meanwhile
                    Distribution._validate_args = validates.before


_GENERATOR = "_checkpoint_without_reentrant_generator"
_generate, _enter = vars(checkpoint)[_GENERATOR], torch.inference_mode.__enter__
_register, _detach, _told = Tensor.register_hook, Tensor.detach_, set[str]()
_view = Tensor.view
_call_module, _read = _ModuleStackTracer.call_module, _ModuleStackTracer.getattr
_BEGIN = {name: vars(eager_transforms)[name] for name in ("grad_increment_nesting", "jvp_increment_nesting")}


def _apply_or_run(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    if is_tracing():
        return function(*args)
    plain = checkpoint.CheckpointFunction
    return super(plain, plain).apply(function, preserve_rng_state, *args)


def _generate_or_run(*args: Any, **kwargs: Any) -> Iterator[None]:
    return iter([None]) if is_tracing() else _generate(*args, **kwargs)


def _enter_or_no_grad(mode: torch.inference_mode) -> None:
    if not is_tracing():
        return _enter(mode)
    mode._inference_mode_context = torch.set_grad_enabled(not mode.mode)  # type: ignore[assignment]
    return None


def _register_and_tell(x: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    """What a hook changes is missing in whatever is worked out from a trace: said once for each line that sets one."""
    caller = sys._getframe(1)
    line = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    if is_tracing() and "/torch/" not in line and line not in _told:
        _told.add(line)
        log.warning(
            "forward sets a hook on a tensor (%s). A trace leaves it out, and so does all that is worked out from one; "
            'wrap(model, engine="live") runs it.',
            line,
        )
    return _register(x, hook)


def _detach_or_refuse(x: Tensor) -> Tensor:
    """A tracer does not see that a tensor is cut off in place; that on real values does not even see what there is to cut."""
    if is_tracing() and (x.requires_grad or (type(x) is Tensor and x.is_floating_point())):
        raise TraceError(
            'forward calls detach_(), which a trace loses. Write x = x.detach(), or wrap(model, engine="live"), which runs it.'
        )
    return _detach(x)


def _view_or_reshape(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Torch's fake tensors have other strides than real ones behind a batch norm of a transposed tensor.

    Where real memory does not allow the view either, the model's own run says so when the trace is compared with it.
    """
    try:
        return _view(x, *args, **kwargs)
    except ValueError as error:
        if not is_tracing() or not str(error).startswith("Cannot view a tensor"):
            raise
        return x.reshape(*args, **kwargs)


def _call_or_note(
    tracer: _ModuleStackTracer, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """Torch's tracer stands in every module's call, in all threads, and keeps one stack of the modules that are being called."""
    return _call_module(tracer, module, forward, args, kwargs) if is_tracing() else forward(*args, **kwargs)


def _read_or_note(tracer: _ModuleStackTracer, name: str, value: Any, proxies: Any) -> Any:
    """As for calls: while a model with shared parts is traced, the tracer gives stand-ins for what modules hold."""
    return _read(tracer, name, value, proxies) if is_tracing() else value


def _refused(begin: Callable[[], Any]) -> Callable[[], Any]:
    """What begins a derivative by torch.func: of a trace its operations would be activations, to which rules apply."""

    def begin_unless_traced() -> Any:
        if is_tracing():
            raise TraceError(
                "forward takes derivatives itself (torch.func), which a trace takes for activations. "
                'wrap(model, engine="live") runs the model itself.'
            )
        return begin()

    return begin_unless_traced


class _Validates:
    """Whether distributions check their parameters by default: as before, but not in a thread that traces."""

    def __init__(self, before: bool) -> None:
        self.before = before

    def __get__(self, instance: Any, owner: Any) -> bool:
        return self.before and not is_tracing()


def is_running_plainly() -> bool:
    """Whether wrapped modules must run as they are in this thread: it is tracing, or only looks at what they do."""
    return _state.plain > 0 or is_tracing()


@contextlib.contextmanager
def running_plainly() -> Iterator[None]:
    """Let wrapped modules run as they are in this thread."""
    global RUNS
    _state.plain = _state.plain + 1
    RUNS += 1
    try:
        yield
    finally:
        RUNS -= 1
        _state.plain -= 1


class _Record:
    """Where a run notes its outputs. Not on the module, since torch.export undoes what a module sets on itself."""

    out_spec: Any = None
    out_leaves: list[Any] = []


class FlatModel(nn.Module):
    """A model that takes its tensor leaves as positional arguments and returns a flat list of tensors.

    `record.out_spec` and `record.out_leaves` describe the true output after a run (see `flatten_output`).
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        leaves, self.in_spec = flatten_input(args, kwargs)
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        identities = [id(leaves[i]) for i in self.slots]
        self.first = [identities.index(identity) for identity in identities]  # of one that is given twice
        self.record = _Record()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        leaves = list(self.leaves)
        for slot, place in zip(self.slots, self.first):
            leaves[slot] = tensors[place]
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        buffers = dict(self.model.named_buffers()) if is_tracing() else {}
        output = self.model.forward(*args, **kwargs)
        _write_assigned(self.model, buffers)
        tensors_out, self.record.out_leaves, self.record.out_spec = flatten_output(output)
        return tensors_out


def _write_assigned(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write what forward assigned to a buffer's name into the buffer, as a tracer sees only what is written."""
    for name, buffer in before.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        assigned = module._buffers.get(own)
        if assigned is buffer or assigned is None or assigned.shape != buffer.shape or assigned.dtype != buffer.dtype:
            continue
        with torch.no_grad():
            buffer.copy_(assigned)
        module._buffers[own] = buffer


def attributes_of(tensor: Tensor) -> dict[str, Any]:
    """What somebody has set on a tensor, for a copy of it."""
    return {name: value for name, value in vars(tensor).items() if not name.startswith("_")}


@contextlib.contextmanager
def given(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model hold other tensors in place of its parameters and buffers of these names, wherever it holds them.

    As `torch.func.functional_call`, which leaves them in a module that has two places in the model (a norm under its own name
    and in a Sequential).
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    instead = {id(own[name]): tensor for name, tensor in tensors.items()}
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    places: list[Any] = [(table, name, x) for table in tables for name, x in table.items() if id(x) in instead]
    try:
        for table, name, x in places:
            table[name] = instead[id(x)]
            if attributes := attributes_of(x):
                vars(instead[id(x)]).update(attributes)
        yield
    finally:
        for table, name, x in places:
            table[name] = x
