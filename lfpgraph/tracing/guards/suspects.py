"""What a run calls that a static program cannot keep: output, clocks, hooks on tensors, custom backward functions and more.

Only calls that user's code makes count (`users_code.asker`); torch and Python call the same functions for ends of their own.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import random
import threading
import types
from typing import Any

import torch
from torch import Tensor, nn

from .users_code import asker, owner_of, place_of

__all__ = ["NUMBERS", "Suspects"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__))

_GRADIENT = "takes gradients inside forward"
_SEEDS = "seeds torch's random generator"
_DRAWN = "reads the state of torch's random generator"
_UNFOLLOWED = "runs torch's control flow without gradients, which a trace forgets"  # what leads to it as well
_SETTING, _STATE = "asks for a setting of torch's", "asks for the state of the process"

# Functions of torch, by file and name; "question" and "read" are judged together (`Suspects.shortcut`).
_TABLE = {
    ("compiler/__init__.py", "is_compiling"): "question",
    ("compiler/__init__.py", "is_dynamo_compiling"): "question",
    ("compiler/__init__.py", "is_exporting"): "question",
    ("_utils.py", "is_compiling"): "question",
    ("_dynamo/external_utils.py", "is_compiling"): "question",
    ("jit/_trace.py", "is_tracing"): "question",
    ("_jit_internal.py", "is_scripting"): "question",
    ("onnx/__init__.py", "is_in_onnx_export"): "question",
    ("fx/_symbolic_trace.py", "is_fx_tracing"): "question",
    ("fx/_symbolic_trace.py", "is_fx_symbolic_tracing"): "question",
    ("autograd/graph.py", "_engine_run_backward"): _GRADIENT,
    ("autograd/graph.py", "saved_tensors_hooks.__enter__"): "sets hooks on saved tensors",
    ("autograd/forward_ad.py", "make_dual"): "takes forward-mode derivatives inside forward",
    ("_tensor.py", "is_shared"): "asks in which memory a tensor lies",
    ("_tensor.py", "storage"): "asks in which memory a tensor lies",
    ("_tensor.py", "register_hook"): "sets a hook on a tensor",
    ("_tensor.py", "register_post_accumulate_grad_hook"): "sets a hook on a tensor",
    ("autograd/graph.py", "register_multi_grad_hook"): "sets a hook on a tensor",
    ("random.py", "initial_seed"): _DRAWN,
    ("random.py", "get_rng_state"): _DRAWN,
    ("__init__.py", "get_float32_matmul_precision"): _SETTING,
    ("random.py", "manual_seed"): _SEEDS,
    ("random.py", "seed"): _SEEDS,
    ("random.py", "set_rng_state"): "sets torch's random generator",
    ("random.py", "fork_rng"): "sets torch's random generator",
    (
        "_dynamo/eval_frame.py",
        "compile_wrapper",
    ): "calls what torch.compile has compiled, which a program cannot hold; it runs as it was written",
}
_TABLE |= {(f"_higher_order_ops/{name}.py", name): _UNFOLLOWED
           for name in ("associative_scan", "cond", "map", "scan", "while_loop")}  # fmt: skip
_THREAD = "asks which thread runs it"
_FRAMES = "looks at the frames of its callers"
_TRANSFORMS = {f"{_TORCH}_functorch{os.sep}{file}.py" for file in ("apis", "eager_transforms", "vmap")}
_PYTHON = {
    logging.Logger.handle.__code__: "logs",
    threading.Thread.start.__code__: "starts a thread",
    threading.current_thread.__code__: _THREAD,
    inspect.currentframe.__code__: _FRAMES,
    inspect.stack.__code__: _FRAMES,
}
_APPLY, _CHECKPOINT = ("autograd/function.py", "apply"), ("utils/checkpoint.py", "checkpoint")
_CLOCK = "reads the clock"
_MODULES = {"posix": "calls the operating system", "nt": "calls the operating system", "_socket": "uses the network",
            "gc": _STATE, "resource": _STATE, "_signal": _STATE, "_tracemalloc": _STATE, "_locale": _STATE,
            "_io": "opens a file", "io": "opens a file", "time": _CLOCK}  # fmt: skip
_WARNINGS = {"warn": "warns", "warn_explicit": "warns"}  # others of its functions serve filters
_BUILTINS = {"print": "prints", "open": "opens a file", "input": "asks the user", "__import__": "imports by a name",
             "eval": "runs code by eval", "exec": "runs code by exec", "globals": "looks names up in globals()"}  # fmt: skip
_PROCESS = {"_getframe": _FRAMES, "getrefcount": "counts references", "getrecursionlimit": _STATE, "gettrace": _STATE,
            "getswitchinterval": _STATE, "getprofile": _STATE}  # fmt: skip
_ASKS = {("torch", name): _SETTING for name in ("get_num_threads", "get_num_interop_threads", "is_anomaly_enabled",
                                                "is_inference_mode_enabled")}  # fmt: skip
_ASKS |= {("decimal", "getcontext"): _STATE, ("numpy", "fromfile"): "reads or writes a file"}
_FREEZES = "freezes a parameter inside forward, or lets it train again"
_LAYOUT = ("is_contiguous", "stride", "as_strided")
_PLACES, _MEMORY = (
    ("data_ptr", "untyped_storage", "storage_offset", "is_set_to", "_is_view"),
    "asks in which memory a tensor lies",
)
_ONCE = ("logs", "warns", "prints", "opens a file", "reads or writes a file", "calls the operating system",
         "imports by a name")  # fmt: skip
_READS = ("item", "tolist", "numpy", "__array__")
NUMBERS = ("__bool__", "__int__", "__float__", "__index__", "__complex__")
_NODE_HOOKS = ("register_hook", "register_prehook")
_HARMLESS = ("fspath", "getpid", "collect", "freeze")


class Suspects:
    """Notes the calls of one run.

    Attributes:
        reasons: what makes the model live, each with its place, and whether it is of a kind that may happen only once.
        question, read: where user's code first asked whether it is being traced, and where it first made a Python value out of
            a tensor's.
        loggers: those whose level user's code asked for.
        asks_layout: whether user's code asked how a tensor lies in memory.
        runs_again: where a checkpoint begins that runs a part of the model again in the backward pass.
    """

    def __init__(self) -> None:
        self.runs_again: str | None = None
        self.asks_layout = False
        self.reasons: list[tuple[str, bool]] = []
        self.question: str | None = None
        self.read: str | None = None
        self.loggers: dict[logging.Logger, None] = {}
        self._known: dict[types.CodeType, str | None] = {}

    def add(self, words: str, frame: types.FrameType | None) -> None:
        """Note what the user's code at a frame does."""
        place = place_of(frame)
        self.reasons.append((f"{words} ({place})" if place else words, words in _ONCE))

    def always(self, reason: str) -> None:
        """Note a reason that will hold in later runs too."""
        self.reasons.append((reason, False))

    def once(self, reason: str) -> None:
        """Note a reason that may not hold in later runs."""
        self.reasons.append((reason, True))

    @property
    def shortcut(self) -> str | None:
        """A question about tracing together with a read of a tensor's value: the model may branch on data when it is not traced.

        Without such a read a run is a straight line of tensor operations whatever the answer was, so that comparing the
        program's results with the model's on one example shows whether both answers lead to the same.
        """
        if self.question is None or self.read is None:
            return None
        ask = f"asks whether it is being traced ({self.question}) and reads a tensor's value ({self.read})"
        return f"{ask}: when it is not traced it may branch on data"

    def python(self, frame: types.FrameType) -> None:
        """A Python function is called."""
        code = frame.f_code
        if code not in self._known:
            self._known[code] = _meaning(code)
        words = self._known[code]
        if words is None:
            return
        wrapped = words in (_GRADIENT, _SEEDS, "checkpoint")  # by torch, perhaps
        user = asker(frame.f_back, through_torch=wrapped)
        if user is None:
            return
        if words == "question":
            self.question = self.question or place_of(user)
        elif words == "read":
            self.read = self.read or place_of(user)
        elif words == "level":
            self.loggers[frame.f_locals["self"]] = None
        elif words == _FREEZES and not isinstance(frame.f_locals["tensor"], nn.Parameter):
            return
        elif words == _UNFOLLOWED and torch.is_grad_enabled():
            return
        elif words == _THREAD and user is not frame.f_back:  # Python's library does for its own ends
            return
        elif words == "checkpoint":
            self.runs_again = self.runs_again or place_of(user)
            if not frame.f_locals.get("kwargs", {}).get("preserve_rng_state", True):
                self.add("lets a checkpoint draw its random numbers anew", user)
        elif words == "apply":
            self._applied(frame.f_locals["cls"], user)
        else:
            self.add(words, user)

    def _applied(self, function: Any, user: types.FrameType) -> None:
        if owner_of(_file_of(function.forward)) == "user":
            self.add(f"uses {function.__name__}, a torch.autograd.Function with a backward of its own", user)

    def returned(self, frame: types.FrameType, result: Any) -> None:
        """A Python function returns a result.

        What a transform of torch.func has made of parameters and activations is live in the same way as the result of a
        custom backward function: by its own derivative.
        """
        if frame.f_code.co_filename not in _TRANSFORMS or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        results = result if isinstance(result, tuple) else (result,)
        if any(isinstance(x, Tensor) and x.requires_grad for x in results):
            user = asker(frame.f_back, through_torch=True)
            if user is not None:
                self.add("transforms a function by torch.func, whose own derivative is used", user)

    def builtin(self, frame: types.FrameType, function: Any) -> None:
        """A function written in C is called."""
        name, owner = function.__name__, getattr(function, "__self__", None)
        words = None
        if isinstance(owner, Tensor):
            if name in _READS and self.read is None and (user := asker(frame)) is not None:
                self.read = place_of(user)
            words = "keeps the gradient of a tensor" if name == "retain_grad" else None
            if name in _LAYOUT and not self.asks_layout:
                self.asks_layout = asker(frame) is not None
            words = _MEMORY if name in _PLACES else words
            words = _FREEZES if name == "requires_grad_" and isinstance(owner, nn.Parameter) else words
        elif isinstance(owner, random.Random):
            words = "draws from Python's random"
        elif isinstance(owner, io.IOBase):
            in_memory = isinstance(owner, io.StringIO | io.BytesIO)
            words = None if in_memory else "reads or writes a file"
        elif name == "apply" and isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            if not frame.f_code.co_filename.startswith(_TORCH) and (user := asker(frame)) is not None:
                self._applied(owner, user)  # of Python's before torch 2.14
        elif isinstance(owner, type) and owner.__module__ == "datetime":
            words = _CLOCK if name in ("now", "utcnow", "today") else None
        elif type(owner).__module__ == "sqlite3":
            words = "asks a database"
        elif (function.__module__, name) in _ASKS:
            words = _ASKS[function.__module__, name]
        elif name in _NODE_HOOKS:
            words = "sets a hook on an autograd node"
        elif function.__module__ == "builtins":
            words = _BUILTINS.get(name)
        elif function.__module__ == "sys":
            words = _PROCESS.get(name) if asker(frame) is frame else None  # not by Python's library
        elif function.__module__ == "_warnings":
            words = _WARNINGS.get(name)
        elif name not in _HARMLESS:
            words = _MODULES.get(function.__module__)
        if name in ("_is_tracing", "_get_tracing_state") and self.question is None:
            user = asker(frame)
            self.question = place_of(user) if user is not None else None
        if words is not None and (user := asker(frame)) is not None:
            if words != _CLOCK or user is frame:  # Python's library reads it for log lines, locks and names
                self.add(words, user)


def _meaning(code: types.CodeType) -> str | None:
    file, name = code.co_filename, code.co_name
    if code in _PYTHON:
        return _PYTHON[code]
    if code is logging.Logger.isEnabledFor.__code__:
        return "level"
    if os.path.dirname(file) == _HERE and name in ("seen_read", "seen_freeze"):  # of `observation`
        return "read" if name == "seen_read" else _FREEZES
    if not file.startswith(_TORCH):
        return None
    place = file[len(_TORCH) :].replace(os.sep, "/")
    if (place, name) == _APPLY:
        return "apply"
    if (place, name) == _CHECKPOINT:
        return "checkpoint"
    if name == "__enter__":  # several classes of a file have one
        return _TABLE.get((place, getattr(code, "co_qualname", f"saved_tensors_hooks.{name}")))
    return _TABLE.get((place, name))


def _file_of(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return "" if code is None else str(code.co_filename)
