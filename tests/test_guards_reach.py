"""`tracing.guards`: what a run reads by ways that name nothing in the model is watched as well, or keeps the model live."""

from __future__ import annotations

import array
import ctypes
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import LiveOnlyError, TraceError
from lfpgraph.tracing.guards import Observation

from .support.live.table import RECORDED

SCALE = 1.0
NUMBERS = array.array("d", [1.0])
NUMBER = ctypes.c_double(1.0)
ELSEWHERE = types.ModuleType("lfpgraph_test_elsewhere")


class Held:
    """A configuration whose attributes are its class's."""

    __slots__ = ("own",)
    gain = 1.0
    table = {"gain": 1.0}

    @classmethod
    def of_class(cls) -> float:
        return cls.gain


class Target:
    """Something that can be referred to weakly."""


def scaled(x: Tensor) -> Tensor:
    return x * scaled.gain  # type: ignore[attr-defined]


def collected(x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
    seen.append(1)
    return x * len(seen)


class Net(nn.Module):
    """Multiplies by what `read` gives."""

    def __init__(self, read: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.read, self.held = nn.Linear(3, 3), read, Held()
        self.deep = {"a": (types.SimpleNamespace(x=[0, {"s": [1.0]}]),)}
        self.buffer = bytearray(b"a")
        chain = types.SimpleNamespace(value=1.0)
        for _ in range(12):
            chain = types.SimpleNamespace(next=chain)
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * self.read(self, x)


def _last(chain: Any) -> Any:
    while hasattr(chain, "next"):
        chain = chain.next
    return chain


def _imported(model: Net, x: Tensor) -> float:
    import lfpgraph_test_elsewhere  # type: ignore[import-not-found]

    return lfpgraph_test_elsewhere.gain


def _imported_from(model: Net, x: Tensor) -> float:
    from lfpgraph_test_elsewhere import gain  # type: ignore[import-not-found]

    return gain


def _by_importlib(model: Net, x: Tensor) -> float:
    import importlib

    return importlib.import_module("lfpgraph_test_elsewhere").gain


WATCHED: dict[str, tuple[Callable[[Net, Tensor], Any], Callable[[Net], tuple[Any, str, Any]]]] = {
    "import inside": (_imported, lambda m: (ELSEWHERE, "gain", 2.0)),
    "from import inside": (_imported_from, lambda m: (ELSEWHERE, "gain", 2.0)),
    "importlib": (_by_importlib, lambda m: (ELSEWHERE, "gain", 2.0)),
    "getattr of a module": (lambda m, x: getattr(ELSEWHERE, "gain"), lambda m: (ELSEWHERE, "gain", 2.0)),  # noqa: B009
    "sys.modules": (lambda m, x: sys.modules["lfpgraph_test_elsewhere"].gain, lambda m: (ELSEWHERE, "gain", 2.0)),
    "attribute of a function": (lambda m, x: scaled(x), lambda m: (scaled, "gain", 2.0)),
    "class of an object": (lambda m, x: m.held.gain, lambda m: (Held, "gain", 2.0)),
    "entry of an object's class": (lambda m, x: m.held.table["gain"], lambda m: (Held.table, "gain", 2.0)),
    "class method": (lambda m, x: Held.of_class(), lambda m: (Held, "gain", 2.0)),
    "deep inside": (lambda m, x: m.deep["a"][0].x[1]["s"][0], lambda m: (m.deep["a"][0].x[1]["s"], 0, 2.0)),
    "array": (lambda m, x: NUMBERS[0], lambda m: (NUMBERS, 0, 2.0)),
    "ctypes": (lambda m, x: NUMBER.value, lambda m: (NUMBER, "value", 2.0)),
    "method of tensors": (lambda m, x: x.relu(), lambda m: (Tensor, "relu", torch.tanh)),
}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    ELSEWHERE.gain = 1.0  # type: ignore[attr-defined]
    scaled.gain = 1.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, ELSEWHERE.__name__, ELSEWHERE)


@pytest.mark.parametrize("kind", WATCHED)
def test_what_is_read_by_other_ways_is_watched(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, change = WATCHED[kind]
    model = Net(read)
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert seen.why_live is None and seen.guard is not None
    assert seen.guard.changed() is None
    holder, name, value = change(model)
    if isinstance(holder, dict):
        monkeypatch.setitem(holder, name, value)
    elif isinstance(name, int):
        holder[name] = value
    else:
        monkeypatch.setattr(holder, name, value, raising=False)
    try:
        assert seen.guard.changed() is not None
    finally:
        NUMBERS[0], NUMBER.value = 1.0, 1.0


LIVE: dict[str, tuple[Callable[[Net, Tensor], Any], str]] = {
    "eval": (lambda m, x: eval("SCALE"), "runs code by eval"),
    "globals": (lambda m, x: globals()["SCALE"], "globals()"),
    "gradient": (lambda m, x: 1.0 if m.lin.weight.grad is None else 2.0, "may read .grad"),
    "frames": (lambda m, x: inspect.currentframe().f_back.f_lineno, "frames of its callers"),  # type: ignore[union-attr]
    "default that grows": (lambda m, x: collected(x), "__defaults__"),
    "long chain": (lambda m, x: _last(m.chain).value, "cannot be watched"),
}


@pytest.mark.parametrize("kind", LIVE)
def test_what_cannot_be_watched_keeps_the_model_live(kind: str) -> None:
    read, words = LIVE[kind]
    model = Net(read)
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert words in (seen.why_live or "static") and seen.guard is None


def _all_modules(model: Net, x: Tensor) -> float:
    return 2.0 if "no_such_module" in sys.modules else 1.0


def test_modules_that_are_imported_later_are_no_change() -> None:
    """einops looks through all modules that there are."""
    model = Net(_all_modules)
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert seen.why_live is None and seen.guard is not None
    sys.modules["lfpgraph_test_later"] = types.ModuleType("lfpgraph_test_later")
    try:
        assert seen.guard.changed() is None
    finally:
        del sys.modules["lfpgraph_test_later"]


def test_an_array_that_is_watched_can_grow() -> None:
    model = Net(lambda m, x: len(m.buffer))
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    model.buffer.append(1)
    assert seen.guard is not None and "buffer" in (seen.guard.changed() or "")


def test_a_live_run_holds_nothing_of_the_models() -> None:
    model = Net(lambda m, x: 1.0)
    target = Target()
    model.kept, model.weak = target, weakref.ref(target)
    model.read = lambda m, x: 1.0 if m.weak() is None else 2.0
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert seen.why_live is not None
    del model.kept, target
    assert model.weak() is None


def test_tensors_with_attributes_are_arguments_of_another_kind() -> None:
    class Tagged(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * getattr(x, "tag", 1.0)

    model = lfpgraph.wrap(Tagged(3, 2), RECORDED, engine="static")
    x = torch.randn(4, 3)
    plain = model(x)
    x.tag = 2.0  # type: ignore[attr-defined]
    with pytest.raises(TraceError):
        model(x)
    lfpgraph.unwrap(model)
    assert torch.equal(model(x), 2 * plain)


class Sub(Tensor):
    """A tensor of a class of the user's."""


@functools.cache
def _cases() -> dict[str, Callable[[], Any]]:
    from torch.nn.attention.bias import causal_lower_right

    return {
        "sizes": lambda: Sub(2, 3),
        "values": lambda: Sub([1.0, 2.0]),
        "causal bias": lambda: causal_lower_right(3, 3),
    }


@pytest.mark.parametrize("kind", ["sizes", "values", "causal bias"])
def test_tensors_of_the_users_classes_are_made_inside(kind: str) -> None:
    made: list[Any] = []
    model = nn.Linear(3, 2)
    model.register_forward_pre_hook(lambda *_: made.append(_cases()[kind]()))
    lfpgraph.wrap(model, engine="live")
    model(torch.randn(4, 3)).sum().backward()
    assert type(made[0]).__name__ in ("Sub", "CausalBias")
    assert model.weight.grad is not None


def test_a_buffer_of_another_size_keeps_the_model_live() -> None:
    """As an observer's of quantisation-aware training, whose first call finds out how many channels there are."""

    class Observes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)
            self.register_buffer("low", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if len(self.low) != x.shape[1]:
                self.low.resize_(x.shape[1]).zero_()
            return self.a(x - self.low)

    model = lfpgraph.wrap(Observes(), engine="static")
    with pytest.raises(LiveOnlyError, match="gives its buffer low another size"):
        model(torch.randn(4, 3))
