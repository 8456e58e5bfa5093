"""The two matrices of a layer of low rank (LoRA's A and B) take the plain signal under `lfp`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites import get_composite

from .support.helpers import relative

ENGINES = pytest.mark.parametrize("engine", ["static", "live"])


class Adapted(nn.Module):
    """A layer with a way of low rank beside it, as PEFT writes LoRA."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda a: a, read: bool = False, rank: int = 2) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.a, self.b, self.dropout = nn.Linear(6, rank, bias=False), nn.Linear(rank, 6, bias=False), nn.Dropout(0.2)
        self.between, self.read = between, read

    def forward(self, x: Tensor) -> Tensor:
        low = self.a(self.dropout(x))
        out = self.base(x) + self.b(self.between(low)) * 2.0
        if self.read:
            out = out + low.sum(-1, keepdim=True)
        found: Tensor = self.head(torch.relu(out))
        return found


class Convolutions(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 2, 3), nn.Conv1d(2, 8, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x)).tanh()
        return found


def _plain(model: nn.Module, x: Tensor, engine: str, composite: object = "lfp") -> set[str]:
    """The names of the matrices whose feedback is the model's gradient, all else being linear."""
    found = []
    for wrapped in (lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine), model):
        wrapped.zero_grad()
        torch.manual_seed(1)
        wrapped(x).sum().backward()
        found.append({name: p.grad for name, p in wrapped.named_parameters() if p.dim() > 1})
    return {name for name, s in found[0].items() if relative(s, found[1][name]) < 1e-9}


CASES: dict[str, tuple[nn.Module, set[str]]] = {
    "lora": (Adapted(), {"a.weight", "b.weight"}),
    "a number, a view and dropout between": (
        Adapted(lambda a: torch.dropout(a * 0.5, 0.1, True).view(-1, 2)), {"a.weight", "b.weight"}
    ),
    "not of low rank": (Adapted(rank=6), set()),
    "a relu between": (Adapted(torch.relu), set()),
    "read elsewhere as well": (Adapted(read=True), set()),
    "the way there alone, scaled by itself": (Adapted(lambda a: a * a.detach()), set()),
}  # fmt: skip


@ENGINES
@pytest.mark.parametrize("name", CASES)
def test_which_take_the_plain_signal(name: str, engine: str) -> None:
    model, expected = CASES[name]
    assert _plain(copy.deepcopy(model).double(), torch.randn(5, 6, dtype=torch.float64), engine) == expected


class Flattened(nn.Module):
    """Layers behind each other with a view between them, over samples of an open number."""

    def __init__(self, view: Callable[[Tensor], Tensor], last: int) -> None:
        super().__init__()
        self.first, self.second, self.view = nn.Linear(8, 2), nn.Linear(last, 7), view

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.view(self.first(x)))
        return found


@ENGINES
@pytest.mark.parametrize(
    ("view", "last", "expected"),
    [
        (lambda a: a.view(a.shape[0] * 3, 2), 2, {"first.weight", "second.weight"}),
        (
            lambda a: a.reshape(a.shape[0], -1),
            6,
            set(),
        ),  # the second reads places, too: wider than what the first makes
        (lambda a: a.flatten(1), 6, set()),
    ],
)
def test_views_between_them_of_an_open_number_of_samples(
    view: Callable[[Tensor], Tensor], last: int, expected: set[str], engine: str
) -> None:
    model = Flattened(view, last).double()
    assert _plain(model, torch.randn(5, 3, 8, dtype=torch.float64), engine) == expected


@ENGINES
@pytest.mark.parametrize(("groups", "expected"), [(1, {"first.weight", "second.weight"}), (2, set())])
def test_convolutions(groups: int, expected: set[str], engine: str) -> None:
    """One for each channel mixes none, so the channels before it mean something."""
    composite = replace(get_composite("lfp"), structure=None)  # the tanh by its quotient, the same in both runs
    model, x = Convolutions(groups).double(), torch.randn(2, 3, 9, dtype=torch.float64)
    gradient = replace(composite, default=replace(composite.default, scale="signal"))
    found = []
    for one in (composite, gradient):
        wrapped = lfpgraph.wrap(copy.deepcopy(model), one, engine=engine)
        wrapped(x).sum().backward()
        found.append({name: p.grad for name, p in wrapped.named_parameters() if p.dim() > 1})
    assert {name for name, s in found[0].items() if relative(s, found[1][name]) < 1e-9} == expected


def test_an_option_of_its_own() -> None:
    composite = get_composite("lfp")
    others = replace(composite, default=replace(composite.default, factors="weight"))
    assert _plain(Adapted().double(), torch.randn(5, 6, dtype=torch.float64), "static", others) == set()
    assert get_composite("lfp-epsilon").default.factors == "weight", "the published rule stays"


@pytest.mark.parametrize("between", [lambda a: a, lambda a: a.clone() / 2])
def test_casts_of_autocast_make_no_difference(between: Callable[[Tensor], Tensor]) -> None:
    """A traced graph shows them, a recorded run does not."""
    found, x = [], torch.randn(5, 6)
    for engine in ("static", "live"):
        torch.manual_seed(0)
        model = Adapted(between)
        wrapped = lfpgraph.wrap(model.eval(), engine=engine)
        with torch.autocast("cpu", torch.bfloat16):
            out = wrapped(x)
        out.float().square().sum().backward()
        found.append([p.grad for p in wrapped.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
