"""`tracing.guards`: objects of Python's, numpy's and torch's own kinds, orders, memory and what tensors are asked."""

from __future__ import annotations

import abc
import collections
import copy
import ctypes
import functools
import gc
import operator
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import LiveOnlyError, TraceError
from lfpgraph.tracing.guards import Observation
from lfpgraph.tracing.written import parameters

from .support.live.table import RECORDED

HELD = types.SimpleNamespace(gain=1.0)


@functools.lru_cache
def cached() -> float:
    return float(HELD.gain)


@functools.singledispatch
def by_class(value: object) -> float:
    return 1.0


class Kind(abc.ABC):  # noqa: B024
    """Of which classes can be registered."""


class Meta(type):
    gain = 1.0


class WithMeta(metaclass=Meta):
    """Has an attribute by its class's class."""


class Thing:
    """Something that can be referred to weakly, and registered."""


class Net(nn.Module):
    """Multiplies by what `read` gives."""

    def __init__(self, read: Callable[[Any, Tensor], Any], held: Any = None) -> None:
        super().__init__()
        self.lin, self.read, self.held = nn.Linear(3, 3), read, held
        self.parts = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Tanh()})

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * self.read(self, x)


def _through(model: Net, x: Tensor) -> Tensor:
    for name in model.parts:
        x = model.parts[name](x)
    return x


def _moved(table: Any) -> None:
    table["a"] = table.pop("a")


def _again(value: float) -> None:
    HELD.gain = value
    cached.cache_clear()


def _scope(value: Any, name: str, new: Any) -> None:
    setattr(value, name, new)


Read, Change = Callable[[Any, Tensor], Any], Callable[[Any], Any]
WATCHED: dict[str, tuple[Callable[[], Any], Read, Change]] = {
    "event": (threading.Event, lambda m, x: 2.0 if m.held.is_set() else 1.0, lambda m: m.held.set()),
    "lock": (threading.Lock, lambda m, x: 2.0 if m.held.locked() else 1.0, lambda m: m.held.acquire()),
    "chain of maps": (lambda: collections.ChainMap({}, {"k": 1.0}), lambda m, x: m.held["k"],
                      lambda m: m.held.update(k=2.0)),
    "dictionary of the user's": (lambda: collections.UserDict(k=1.0), lambda m, x: m.held["k"],
                                 lambda m: m.held.update(k=2.0)),
    "keys held weakly": (weakref.WeakKeyDictionary, lambda m, x: m.held.get(m, 1.0), lambda m: m.held.update({m: 2.0})),
    "what a proxy shows": (lambda: types.MappingProxyType({"k": HELD}), lambda m, x: m.held["k"].gain,
                           lambda m: _scope(HELD, "gain", 2.0)),
    "view of a dictionary": (lambda: {"k": 1.0}.values(), lambda m, x: next(iter(m.held)),
                             lambda m: gc.get_referents(m.held)[0].update(k=2.0)),
    "method of a dictionary": (lambda: {"k": 1.0}.__getitem__, lambda m, x: m.held("k"),
                               lambda m: m.held.__self__.update(k=2.0)),
    "attribute by a getter": (lambda: operator.attrgetter("lin.gain"), lambda m, x: 1.0 if x is None else m.held(m),
                              lambda m: _scope(m.lin, "gain", 2.0)),
    "attribute by a format": (lambda: HELD, lambda m, x: float("{0.gain}".format(m.held)),  # noqa: UP030, UP032
                              lambda m: _scope(HELD, "gain", 2.0)),
    "order of a dictionary": (lambda: {"a": 1.0, "b": 2.0}, lambda m, x: next(iter(m.held.values())),
                              lambda m: _moved(m.held)),
    "order of an ordered dictionary": (lambda: collections.OrderedDict(a=1.0, b=2.0),
                                       lambda m, x: next(iter(m.held.values())), lambda m: m.held.move_to_end("a")),
    "order of modules": (lambda: None, _through, lambda m: _moved(m.parts)),
    "cleared cache": (lambda: cached() and None, lambda m, x: cached(), lambda m: _again(2.0)),
    "registered function": (Thing, lambda m, x: by_class(m.held), lambda m: by_class.register(Thing, lambda _: 2.0)),
    "registered class": (Thing, lambda m, x: 2.0 if isinstance(m.held, Kind) else 1.0, lambda m: Kind.register(Thing)),
    "class of a class": (lambda: None, lambda m, x: WithMeta.gain, lambda m: _scope(Meta, "gain", 2.0)),
    "polynomial": (lambda: np.poly1d([1.0]), lambda m, x: float(m.held(0)), lambda m: m.held.__init__([2.0])),
    "distribution": (lambda: torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0)),
                     lambda m, x: m.held.scale, lambda m: _scope(m.held, "scale", torch.tensor(2.0))),
    "module that is no part": (lambda: [nn.Dropout(0.0)], lambda m, x: 1.0 + m.held[0].p,
                               lambda m: _scope(m.held[0], "p", 0.5)),
    "attribute of a tensor": (lambda: [torch.ones(1)], lambda m, x: getattr(m.held[0], "gain", 1.0),
                              lambda m: _scope(m.held[0], "gain", 2.0)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HELD, "gain", 1.0)
    monkeypatch.setattr(Meta, "gain", 1.0)
    cached.cache_clear()


@pytest.mark.parametrize("kind", WATCHED)
def test_what_objects_hold_is_watched(kind: str) -> None:
    held, read, change = WATCHED[kind]
    model = Net(read, held())
    model.lin.gain = 1.0  # type: ignore[assignment]
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert seen.why_live is None and seen.guard is not None
    assert seen.guard.changed() is None
    change(model)
    assert seen.guard.changed() is not None


class Pointing(ctypes.Structure):
    _fields_ = [("at", ctypes.POINTER(ctypes.c_double))]


def _freezes(model: Net, x: Tensor) -> float:
    model.lin.weight.requires_grad = False
    model.lin.weight.requires_grad = True
    return 1.0


LIVE: dict[str, tuple[Callable[[Any], Any], Read, str]] = {
    "optimizer": (lambda m: torch.optim.SGD(m.parameters(), lr=1.0), lambda m, x: m.held.param_groups[0]["lr"],
                  "a parameter of the model"),
    "pointer": (lambda m: Pointing(ctypes.pointer(ctypes.c_double(1.0))), lambda m, x: m.held.at.contents.value,
                "cannot be watched"),
    "leaf": (lambda m: None, lambda m, x: 1.0 if x.is_leaf else 2.0, "may read .is_leaf"),
    "memory": (lambda m: None, lambda m, x: float(x.data_ptr() % 2 + 1), "in which memory"),
    "threads": (lambda m: None, lambda m, x: float(torch.get_num_threads()), "a setting of torch's"),
    "process": (lambda m: None, lambda m, x: 1.0 if gc.isenabled() else 2.0, "the state of the process"),
    "generator": (lambda m: None, lambda m, x: 1.0 + torch.initial_seed() % 2, "random generator"),
    "freezes": (lambda m: None, _freezes, "freezes a parameter"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIVE)
def test_what_a_program_does_not_have_keeps_the_model_live(kind: str) -> None:
    held, read, words = LIVE[kind]
    model = Net(read)
    model.held = held(model)
    with Observation(model) as seen:
        model(torch.randn(2, 3))
    assert words in (seen.why_live or "static") and seen.guard is None


class Asked(nn.Module):
    """Multiplies by what `read` makes of its arguments."""

    def __init__(self, read: Callable[..., Any]) -> None:
        super().__init__()
        self.lin, self.read = nn.Linear(3, 3), read
        self.register_buffer("kept", torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.lin(x) * self.read(self, x, *more)


def _twice(first: bool) -> tuple[Tensor, ...]:
    x = torch.ones(2, 3, dtype=torch.float64)
    return (x, x.clone() if first else x)


def _laid(first: bool) -> tuple[Tensor, ...]:
    x = torch.arange(6.0, dtype=torch.float64)
    return (torch.ones(2, 3, dtype=torch.float64), x.view(2, 3) if first else x.view(3, 2).t())


def _written(model: Asked, x: Tensor, y: Tensor) -> Tensor:
    y.mul_(2)
    return x.sum()


def _overlapping(first: bool) -> tuple[Tensor, ...]:
    x = torch.ones(2, 3, dtype=torch.float64)
    return (x, x[:, :2].clone() if first else x[:, :2])


ASKED: dict[str, tuple[Callable[..., Any], Callable[[bool], tuple[Tensor, ...]]]] = {
    "one tensor given twice": (lambda m, x, y: 2.0 if x is y else 1.0, _twice),
    "layout": (lambda m, x, y: y.sum() * (1.0 if (y * m.lin.weight.sum()).is_contiguous() else 2.0), _laid),
    "read as it lies": (lambda m, x, y: y.as_strided((2, 3), (3, 1)), _laid),
    "written where another lies": (lambda m, x, y: _written(m, x.detach(), y), _overlapping),
}


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("engine", ["auto", "static"])
def test_what_arguments_are_to_each_other(kind: str, engine: str) -> None:
    """A program is for tensors that lie, and are the same, as those that it was traced for."""
    read, given = ASKED[kind]
    torch.manual_seed(0)
    plain = Asked(read).double()
    model = lfpgraph.wrap(copy.deepcopy(plain), RECORDED, engine=engine)
    for first in (True, True, True, False, False, True):
        try:
            found = model(*given(first))
        except (LiveOnlyError, TraceError):
            assert engine == "static" and not first
            continue
        assert torch.allclose(found, plain(*given(first)), rtol=1e-12)


def test_a_refused_trial_leaves_the_parameters_as_they_were() -> None:
    """The model is run once more before it is traced; what it does to its parameters happens once."""

    def read(model: Asked, x: Tensor) -> float:
        if model.step == 5:
            model.lin.bias.data.mul_(0.5)
        return 1.0

    plain = Asked(read).double()
    model = lfpgraph.wrap(copy.deepcopy(plain), RECORDED, engine="auto")
    x = torch.ones(2, 3, dtype=torch.float64)
    for i in range(7):
        plain.step = model.step = i  # type: ignore[assignment]
        assert torch.allclose(model(x), plain(x), rtol=1e-12)
    assert torch.equal(model.lin.bias, plain.lin.bias)


def test_parameters_too_large_to_be_copied_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parameters, "_LARGEST", 1)
    for writes in (False, True):
        model = Asked(lambda m, x, w=writes: m.lin.bias.data.mul_(0.5) if w else 1.0)
        before = parameters.ParametersBefore(model)
        model.read(model, torch.ones(2, 3))
        before.put_back()
        assert ("lin.bias is written to" in caplog.text) == writes


def test_a_trace_leaves_a_counter_as_it_was() -> None:
    """A container of a class of its own is put back by the methods of its kind, and only if it has changed."""
    model = Net(lambda m, x: float(m.held["a"]), collections.Counter(a=5))
    lfpgraph.trace(model, (torch.randn(2, 3),))
    assert model.held == collections.Counter(a=5)


def test_a_copy_of_a_buffer_has_its_attributes() -> None:
    model = Asked(lambda m, x: m.kept.gain).double()
    model.kept.gain = 2.0  # type: ignore[attr-defined]
    found = lfpgraph.wrap(model, RECORDED, engine="auto")(torch.ones(2, 3, dtype=torch.float64))
    assert torch.allclose(found, model.lin(torch.ones(2, 3, dtype=torch.float64)) * 2.0)
