"""What a process does once before it can run a model live, done when the first one is wrapped and not in its first step."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from ..composites.composite import get_composite
from ..live.engine import LiveEngine
from ..tracing.flat import hide_from_compile
from .surroundings import modes, wants_it_as_it_is

__all__ = ["make_ready"]

log = logging.getLogger("lfpgraph")
_lock = threading.Lock()
_ready = False


def make_ready() -> None:
    """Run and plan a tiny model; it draws no random numbers, and says nothing.

    Torch looks up each operation when it is first called so, rules are looked up and code is read: one to two milliseconds.
    """
    global _ready
    plain = (
        torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not torch._C._is_any_autocast_enabled()
    )
    if (
        _ready
        or not plain
        or modes()
        or wants_it_as_it_is()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return
    with _lock:
        if _ready:
            return
        _ready = True
        for name, module in list(sys.modules.items()):
            if name.startswith(_HOOKS_IN):
                _hide_functions(vars(module), name)
        this = threading.get_ident()

        def by_others(record: logging.LogRecord) -> bool:
            return record.thread != this

        log.addFilter(by_others)
        try:
            _run_one()
        finally:
            log.removeFilter(by_others)


# What autograd calls in a backward pass. Where that pass is part of a function that torch.compile compiles, these are no parts.
_HOOKS_IN = ("lfpgraph.live.", "lfpgraph.wrapping.autograd_function")


def _hide_functions(names: Mapping[str, Any], module: str) -> None:
    for value in names.values():
        value = getattr(value, "__func__", value)  # of a static method
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            hide_from_compile(value)
        elif isinstance(value, type):
            _hide_functions(vars(value), module)


def _run_one() -> None:
    layers = [skip_init(nn.Linear, 2, 2, device="cpu", dtype=torch.float32) for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.fill_(1.0)
            layer.bias.fill_(1.0)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    engine = LiveEngine(model, get_composite("lfp"), "derive", check=False)
    engine.run(model, (torch.ones(2, 2, device="cpu", dtype=torch.float32),), {}).sum().backward()
