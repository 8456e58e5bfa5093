"""Outputs that hold more than a program can put in place anew, and inputs that a call changes for autograd."""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import LiveOnlyError
from lfpgraph.wrapping import choice


@pytest.fixture(autouse=True)
def programs_from_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LIVE_FIRST", 0)


class Found:
    """An output of a class of the user's."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Slotted:
    __slots__ = ("y",)

    def __init__(self, y: Tensor) -> None:
        self.y = y


def noted(y: Tensor) -> Tensor:
    y.note = y * 2  # type: ignore[attr-defined]
    return y


class Model(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.give = nn.Linear(4, 2).double(), give

    def forward(self, x: Tensor, tell: Callable[[Tensor], Any] | None = None) -> Any:
        y = self.layer(x)
        if tell is not None:
            tell(y)
        return self.give(y)


# What is made of the layer's result, and what a caller reads of it.
HELD: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "generator": (lambda y: Found(y=y, rows=(row * 2 for row in y)), lambda out: torch.stack(list(out.rows))),
    "closure": (lambda y: Found(y=y, double=lambda: y * 2), lambda out: out.double()),
    "closure, deep": (lambda y: Found(y=y, all=[{"a": (1, lambda: y * 2)}]), lambda out: out.all[0]["a"][1]()),
    "bound method": (lambda y: Found(y=y, times=y.mul), lambda out: out.times(2)),
    "deque": (lambda y: Found(y=y, queue=collections.deque([y * 2])), lambda out: out.queue[0]),
    "set": (lambda y: Found(y=y, all={y}), lambda out: next(iter(out.all)) * 2),
    "iterator": (lambda y: Found(y=y, all=map(torch.sin, [y])), lambda out: next(out.all)),
    "slots": (Slotted, lambda out: out.y * 2),
    "weak reference": (lambda y: Found(y=y, ref=weakref.ref(y)), lambda out: out.ref() * 2),
    "attribute of a tensor": (noted, lambda out: out.note),
}


@pytest.mark.parametrize("name", HELD)
def test_what_only_the_models_own_run_makes(name: str) -> None:
    give, read = HELD[name]
    with pytest.raises(LiveOnlyError, match="it returns a"):
        lfpgraph.wrap(Model(give), "gradient", engine="static")(torch.randn(3, 4, dtype=torch.float64))
    found: list[list[Tensor]] = []
    for engine in (None, "live", "auto"):
        torch.manual_seed(0)
        model = Model(give)
        if engine is not None:
            lfpgraph.wrap(model, engine=engine)
        found.append([])
        for _ in range(3):
            value = read(model(torch.randn(3, 4, dtype=torch.float64)))
            found[-1] += [value, *torch.autograd.grad(value.square().sum(), model.layer.weight)]
    plain, live, auto = found
    assert all(torch.equal(a, b) for a, b in zip(plain[::2], live[::2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(live, auto, strict=True))


def parent_and_child(y: Tensor) -> Found:
    parent = Found(y=y)
    parent.children = [Found(parent=parent, half=y / 2)]  # type: ignore[attr-defined]
    return parent


@pytest.mark.parametrize("engine", ["live", "static"])
def test_objects_that_hold_each_other(engine: str) -> None:
    model = lfpgraph.wrap(Model(parent_and_child), engine=engine)
    for _ in range(3):
        out = model(torch.randn(3, 4, dtype=torch.float64))
        (child,) = out.children
        assert child.parent is out
        assert torch.equal(child.half, out.y / 2)
        child.half.sum().backward()
    assert model.layer.weight.grad.abs().sum() > 0


def test_a_method_of_a_list_is_called_once_at_each_call() -> None:
    model = lfpgraph.wrap(Model(lambda y: y), engine="auto")
    told: list[Tensor] = []
    for i in range(4):
        out = model(torch.randn(3, 4, dtype=torch.float64), told.append)
        assert len(told) == i + 1
        assert torch.equal(told[-1], out)
    with pytest.raises(LiveOnlyError, match="builtin_function_or_method"):
        lfpgraph.wrap(Model(lambda y: y), engine="static")(torch.randn(3, 4, dtype=torch.float64), told.append)
    assert len(told) == 4


class Doubles(nn.Module):
    """Writes to its input, which autograd follows, or to one that it follows from then on."""

    def __init__(self, fills: bool) -> None:
        super().__init__()
        self.layer, self.fills = nn.Linear(4, 4).double(), fills

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        (other.copy_(self.layer(x)) if self.fills else x.mul_(2))
        return self.layer(other if self.fills else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("fills", [False, True])
def test_an_input_is_written_to_as_autograd_follows_it(fills: bool) -> None:
    def gradients(composite: str | None, engine: str = "live") -> list[Tensor]:
        torch.manual_seed(0)
        model = Doubles(fills)
        if composite is not None:
            lfpgraph.wrap(model, composite, engine=engine)
        found = []
        for _ in range(3):
            model.zero_grad()
            leaf = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
            x, other = leaf * 1, torch.zeros(3, 4, dtype=torch.float64)
            (model(x, other).square().sum() + x.sum() + other.sum()).backward()
            found += [leaf.grad, model.layer.weight.grad]
        return found  # type: ignore[return-value]

    with pytest.raises(LiveOnlyError, match="autograd is to follow what has been written"):
        gradients("gradient", "static")
    for found, expected in (
        (gradients("gradient"), gradients(None)),
        (gradients("lfp", "auto"), gradients("lfp")),
    ):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
