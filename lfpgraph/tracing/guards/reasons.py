"""Why a model has to be live: what its state, its hooks and what it keeps say after one observed run."""

from __future__ import annotations

import dis
import gc
import os
import random
import re
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.utils import _device

from .items import Found, random_state_of
from .snapshots import Snapshot
from .users_code import owner_of

__all__ = ["SETTINGS", "State", "reasons_to_be_live", "settings", "writes"]

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


def settings() -> tuple[Any, ...]:
    """torch's settings that decide what a call makes."""
    return (
        torch.get_default_dtype(),
        _device.CURRENT_DEVICE,
        torch._C._len_torch_function_stack(),
        sum(
            not torch._C._get_dispatch_stack_at(i).is_infra_mode() for i in range(torch._C._len_torch_dispatch_stack())
        ),
        bool(torch_module._has_any_global_hook()),
        torch._C._get_deterministic_algorithms(),
    )


SETTINGS = ("the default dtype", "the default device", "torch function modes", "torch dispatch modes", "global hooks",
            "use_deterministic_algorithms")  # fmt: skip


class State:
    """What a run may change of a model besides what a snapshot watches: its tensors' places, and random generators."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.python, self.numpy = random.getstate(), _numpy_state()
        self.settings = settings()
        self.parameters = _parameters(model)
        self.buffers, self.held = _buffers(model), list(model.buffers())  # held, so that no other has their identity
        self.marks = _marks(model)

    def changes(self) -> list[str]:
        found = []
        if random.getstate() != self.python:
            found.append("draws from Python's random")
        if _numpy_state() != self.numpy:
            found.append("draws from numpy's random")
        now = settings()
        found += [f"changes {name}" for name, a, b in zip(SETTINGS, self.settings, now) if a is not b and a != b]
        for before, after, kind in (
            (self.parameters, _parameters(self.model), "parameter"),
            (self.buffers, _buffers(self.model), "buffer"),
        ):
            for name in {**before, **after}:
                if before.get(name) != after.get(name):
                    found.append(f"makes or replaces the {kind} {name}")
        marks = _marks(self.model)
        found += [f"writes the parameter {name}" for name, mark in self.marks.items() if marks.get(name, mark) != mark]
        return found


def _numpy_state() -> Any:
    name, keys, *rest = np.random.get_state()
    return (name, np.asarray(keys).tobytes(), *rest)


def _parameters(model: nn.Module) -> dict[str, Any]:
    return {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}


def _marks(model: nn.Module) -> dict[str, str]:
    """What tells whether a parameter has been written, through `.data`, too, which torch keeps no count of."""
    plain = [(name, p) for name, p in model.named_parameters() if type(p) is nn.Parameter and not p.is_meta]
    return {name: f"{p._version} {_sum(p.detach())}" for name, p in plain if not p.is_inference()}


def _sum(tensor: Tensor) -> Any:
    """A sum that any one write changes: of the bits, eight bytes at a time, which takes a thirtieth of a sum of values."""
    if tensor.layout is not torch.strided or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return tensor.sum(dtype=torch.float64 if tensor.is_floating_point() else None).item()
    octets = tensor.view(-1).view(torch.uint8)
    octets = octets.clone() if octets.storage_offset() % 8 else octets
    whole = octets.numel() // 8 * 8
    return int(octets[:whole].view(torch.int64).sum()), octets[whole:].tolist()


def _buffers(model: nn.Module) -> dict[str, Any]:
    return {
        name: "not made yet" if is_lazy(b) else (id(b), b.shape, b.requires_grad) for name, b in model.named_buffers()
    }


def reasons_to_be_live(
    state: State, snapshot: Snapshot, codes: Iterable[types.CodeType], hooks_are_outside: bool
) -> list[str]:
    """What an observed run leaves behind, and what the model holds, that a static program cannot keep."""
    found: list[str] = []
    for module, path in snapshot.modules.items():
        found += _of_module(module, path, hooks_are_outside and module is state.model)
    found += state.changes()
    return found + [reason for f in snapshot.found if (reason := _of_object(f, snapshot.own, codes)) is not None]


def _of_object(found: Found, own: set[int], codes: Iterable[types.CodeType]) -> str | None:
    name, value = found.name, found.value
    if found.kind == "tensor" and value.requires_grad and value.is_leaf and id(value) not in own:
        return f"{name} requires a gradient and is no parameter of the model: it would be a constant"
    if found.kind == "own":
        where = _line(codes, name)
        return f"{name} is a parameter of the model, found elsewhere than in its module: it would be a constant{where}"
    if found.kind == "generator" and random_state_of(value) != found.state:
        return f"draws from the random generator {name}{_line(codes, name)}"
    if found.kind == "cache" and any(isinstance(item, Tensor) for item in _cached(value)):
        return f"{name} keeps tensors in a cache{_line(codes, name)}"
    if found.kind == "unwatched":
        return f"{name} is a {type(value).__name__}, whose state cannot be watched{_line(codes, name)}"
    return None


def _of_module(module: nn.Module, path: str, from_outside: bool) -> Iterable[str]:
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        yield f"{path or name} is a ScriptModule, whose attributes cannot be watched"
        return
    if from_outside:  # hooks are called around its forward
        return
    path = path or name
    dynamo = sys.modules.get("torch._dynamo")  # not imported for this: it takes seconds
    if (dynamo is not None and isinstance(module, dynamo.OptimizedModule)) or module._compiled_call_impl is not None:
        yield f"{path} is compiled, so what it reads cannot be seen"
    for table, words in _HOOKS.items():
        for hook in vars(module)[table].values():
            if not _is_torchs(hook):
                yield f"{path} has {words}{_place(hook)}"


def _is_torchs(hook: Any) -> bool:
    function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None)
    if code is not None:
        return owner_of(code.co_filename) == "torch"
    return type(hook).__module__.partition(".")[0] == "torch"


def _place(function: Any) -> str:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return "" if code is None else f" ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"


def _cached(cache: Any) -> list[Any]:
    """What a function with an lru_cache keeps: the results, each alone or in a list or tuple."""
    found: list[Any] = []
    for referent in gc.get_referents(cache):
        for item in referent.values() if isinstance(referent, dict) else (referent,):
            found += item if isinstance(item, list | tuple) else (item,)
    return found


def writes(snapshot: Snapshot, codes: Iterable[types.CodeType]) -> list[str]:
    """What a run has written first, by comparing with what was there before: looking for its line takes a while."""
    return [f"writes {name}, which {how}{_line(codes, name)}" for name, how in snapshot.differences()[:1]]


_STORES = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "DELETE_ATTR", "DELETE_GLOBAL")


def _line(codes: Iterable[types.CodeType], name: str) -> str:
    """` (file.py:line)` of the code that stores to a name, or else of code that names it."""
    words = re.findall(r"[^\W\d]\w*", name.split("[")[0])
    if not words:
        return ""
    found = ""
    for code in codes:
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            line = (
                instruction.starts_line
                if isinstance(instruction.starts_line, int) and instruction.starts_line > 1
                else line
            )
            if instruction.argval != words[-1]:
                continue
            place = f" ({os.path.basename(code.co_filename)}:{line})"
            if instruction.opname in _STORES:
                return place
            found = found or place
    return found
