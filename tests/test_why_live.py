"""`Observation.why_live`: what a run does that a static program would lose, with the line of the user's code."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import os
import queue
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn
from torch.autograd import graph
from torch.nn.utils import parametrizations

from lfpgraph.tracing.guards import Observation, try_out

log = logging.getLogger("a model's")
COUNT = 0
SEEN: list[int] = []
KEPT = torch.zeros(4)
GENERATOR = torch.Generator()
STREAM = np.random.default_rng(0)
OUTSIDE = nn.Linear(4, 4)
COUNTER = itertools.count()
QUEUE: queue.Queue[float] = queue.Queue()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3 * ctx.saved_tensors[0]


@functools.lru_cache
def table(n: int) -> Tensor:
    return torch.arange(float(n))


def rebind(x: Tensor) -> Tensor:
    global COUNT
    COUNT += 1
    return x


def closure() -> Callable[[Any, Tensor], Tensor]:
    n = 0

    def forward(model: Any, x: Tensor) -> Tensor:
        nonlocal n
        n += 1
        return x * n

    return forward


def attribute(model: Any, x: Tensor) -> Tensor:
    model.loss = x.sum()
    return x


def counter(model: Any, x: Tensor) -> Tensor:
    model.inner.calls += 1
    return x


def entry(model: Any, x: Tensor) -> Tensor:
    model.cache["x"] = x
    return x


def class_attribute(model: Any, x: Tensor) -> Tensor:
    type(model).runs += 1
    return x


def gradient(model: Any, x: Tensor) -> Tensor:
    y = x.detach().requires_grad_()
    return x * torch.autograd.grad((y**2).sum(), y)[0]


def hooked(model: Any, x: Tensor) -> Tensor:
    x.register_hook(lambda g: g * 2)
    return x


def shortcut(model: Any, x: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and (x > 1e9).any():
        return x * 0
    return x


def saved(model: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return x.exp()


def dual(model: Any, x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.make_dual(x, x).sin()


def retained(model: Any, x: Tensor) -> Tensor:
    x.retain_grad()
    return x


def seeded(model: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + torch.rand(4)


def written(model: Any, x: Tensor) -> Tensor:
    with open(os.devnull, "w"):
        return x


def buffer(model: Any, x: Tensor) -> Tensor:
    model.register_buffer("kept", x.detach())
    return x


KINDS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "attribute": (attribute, "writes loss, which is new"),
    "counter": (counter, "writes inner.calls, which was 0 and is 1"),
    "entry": (entry, "writes cache['x'], which is new"),
    "class attribute": (class_attribute, "writes Live.runs, which was 0 and is 1"),
    "buffer": (buffer, "makes or replaces the buffer kept"),
    "global": (lambda m, x: rebind(x), "COUNT, which was"),
    "global list": (lambda m, x: (SEEN.append(1), x)[1], "writes test_why_live.py: SEEN"),
    "closure": (closure(), "rebinds n"),
    "tensor in place": (lambda m, x: x + KEPT.add_(1), "KEPT, which was 0 and is 1"),
    "random": (lambda m, x: x * random.random(), "draws from Python's random"),
    "random choice": (lambda m, x: x * random.choice([1, 2]), "draws from Python's random"),
    "numpy": (lambda m, x: x * np.random.rand(), "draws from numpy's random"),
    "numpy generator": (lambda m, x: x * STREAM.normal(), "draws from the random generator test_why_live.py: STREAM"),
    "torch generator": (lambda m, x: x * torch.rand(4, generator=GENERATOR), "test_why_live.py: GENERATOR"),
    "seed": (seeded, "seeds torch's random generator"),
    "clock": (lambda m, x: x * (time.time() > 0), "reads the clock"),
    "own function": (lambda m, x: Square.apply(x), "uses Square, a torch.autograd.Function"),
    "gradient": (gradient, "takes gradients inside forward"),
    "tensor's hook": (hooked, "sets a hook on a tensor"),
    "tensors' hook": (lambda m, x: (graph.register_multi_grad_hook([x], print), x)[1], "sets a hook on a tensor"),
    "node's hook": (lambda m, x: (graph.get_gradient_edge(x).node.register_hook(print), x)[1], "hook on an autograd"),
    "hook before a node": (lambda m, x: (graph.get_gradient_edge(x)[0].register_prehook(print), x)[1], "hook on an autograd"),
    "saved tensors": (saved, "sets hooks on saved tensors"),
    "kept gradient": (retained, "keeps the gradient of a tensor"),
    "cache": (lambda m, x: x * table(4), "test_why_live.py: table keeps tensors in a cache"),
    "parameter in place": (lambda m, x: (m.lin.weight.data.mul_(1.5), x)[1], "writes the parameter lin.weight"),
    "outside": (lambda m, x: OUTSIDE(x), "calls a Linear that is no submodule of the model"),
    "made inside": (lambda m, x: nn.Linear(4, 4)(x), "calls a Linear that is no submodule of the model"),
    "outside parameter": (lambda m, x: F.linear(x, m.listed[0]), "listed[0] requires a gradient and is no parameter"),
    "own parameter": (lambda m, x: x @ m.held["w"], "held['w'] is a parameter of the model, found elsewhere"),
    "iterator": (lambda m, x: x * next(COUNTER), "test_why_live.py: COUNTER is a count, whose state"),
    "queue": (lambda m, x: x * (QUEUE.put(2.0), QUEUE.get())[1], "test_why_live.py: QUEUE is a Queue, whose state"),
    "vmap": (lambda m, x: torch.func.vmap(m.lin)(x), "transforms a function by torch.func"),
    "forward mode": (dual, "takes forward-mode derivatives inside forward"),
    "print": (lambda m, x: (print(end=""), x)[1], "prints"),
    "memory": (lambda m, x: (m.stream.write("x"), x)[1], "writes stream, which was '' and is 'x'"),
    "file": (written, "opens a file"),
    "stream": (lambda m, x: (sys.stderr.write(""), x)[1], "reads or writes a file"),
    "log": (lambda m, x: (log.warning("x"), x)[1], "logs"),
    "warning": (lambda m, x: (warnings.warn("x", stacklevel=1), x)[1], "warns"),
    "shortcut": (shortcut, "asks whether it is being traced (test_why_live.py:"),
}  # fmt: skip


class Inner(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0


class Live(nn.Module):
    """Does one thing that only Python can do; what it is given it hands on."""

    runs = 0

    def __init__(self, does: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.inner, self.does = nn.Linear(4, 4), Inner(), does
        self.cache: dict[str, Tensor] = {}
        self.held = {"w": self.lin.weight}
        self.listed, self.stream = [nn.Parameter(torch.randn(4, 4))], io.StringIO()

    def forward(self, x: Tensor) -> Any:
        return self.does(self, self.lin(x))


def observed(model: nn.Module, *args: Any, **kwargs: Any) -> Observation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Observation(model) as seen:
            model(*args, **kwargs)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_program_would_lose_is_named_with_its_line(kind: str) -> None:
    does, words = KINDS[kind]
    if kind == "outside parameter":
        found = observed(Live(does), torch.randn(3, 4)).why_live
        assert found is not None and words in found
        return
    model = Live(does)
    model.listed.clear()
    found = observed(model, torch.randn(3, 4)).why_live
    assert found is not None and words in found
    if kind not in ("buffer", "numpy", "parameter in place"):
        assert "test_why_live.py:" in found


HARMLESS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a module made for the call": lambda m, x: nn.Softmax(dim=-1)(x),
    "a log line that nobody hears": lambda m, x: (log.debug("x"), x)[1],
    "writing to memory": lambda m, x: (io.StringIO().write("x"), x)[1],
    "a list of its own": lambda m, x: sum([x * i for i in range(3)]),
    "a function of its own": lambda m, x: (lambda y, by=2: y * by)(x),
    "an answer about tracing alone": lambda m, x: x if not torch.jit.is_tracing() else x * 1,
    "a value alone": lambda m, x: x * float(x.sum() > 0),
    "a cache of numbers": lambda m, x: x * os.path.splitext("a.b")[1].count("b"),
    "torch's random": lambda m, x: F.dropout(x + torch.rand(4)),
    "no gradient": lambda m, x: x * torch.no_grad()(lambda: x.exp())(),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_a_program_keeps_is_no_reason(kind: str) -> None:
    model = Live(HARMLESS[kind])
    model.listed.clear()
    seen = observed(model, torch.randn(3, 4))
    assert seen.why_live is None
    assert seen.guard is not None and seen.guard.changed() is None


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_inside_are_named(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    getattr(model[0], f"register_{kind}")(lambda *args: None)
    found = observed(model, torch.randn(3, 4)).why_live
    assert found is not None and found.startswith("0 has a ") and "test_why_live.py:" in found


def test_torchs_own_parametrizations_are_no_hooks() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    assert observed(model, torch.randn(3, 4)).why_live is None


def test_hooks_on_the_model_itself_are_called_around_its_forward() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    model.register_forward_hook(lambda *args: None)
    assert "has a forward hook" in (observed(model, x).why_live or "")
    assert try_out(model, (x,), {})[0].why_live is None


def test_a_script_module_cannot_be_watched() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)))
    assert "is a ScriptModule" in (observed(model, torch.randn(3, 4)).why_live or "")


def test_what_happens_once_may_settle() -> None:
    model = Live(lambda m, x: (setattr(m, "ready", True), x)[1])
    model.listed.clear()
    first, second = (observed(model, torch.randn(3, 4)) for _ in range(2))
    assert first.may_settle and first.why_live is not None and "writes ready" in first.why_live
    assert not second.may_settle and second.why_live is None


def test_a_mask_that_a_library_looks_into_is_a_shortcut() -> None:
    """transformers skips the mask where it hides nothing, unless it is traced: a branch on data that a trace does not see."""
    model, batch = build_tiny("bert", "sdpa")
    seen = observed(model, **batch)
    assert seen.shortcut is not None and seen.why_live == seen.shortcut
    assert "masking_utils.py:" in seen.shortcut


def test_lazy_modules_settle() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    first, second = (observed(model, torch.randn(3, 4)) for _ in range(2))
    assert first.may_settle and second.why_live is None
