"""The static engine watches the attributes that a run's code can have read, however it names them, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph


class Settings:
    """An object of the user's, as configurations are."""

    def __init__(self) -> None:
        self.scale1, self.title, self.chosen, self.tags = 2.0, "a", ["scale1"], ["x"]

    def read(self, name: str) -> Any:
        return self.__dict__[name]


class Model(nn.Module):
    """A layer and a factor that is read from its settings in some way."""

    def __init__(self, read: Callable[[Model], float]) -> None:
        super().__init__()
        self.layer, self.settings, self.read, self.place = nn.Linear(3, 2), Settings(), read, 1

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.read(self)


def _formatted(model: Model) -> float:
    return getattr(model.settings, f"scale{model.place}")


def _divided(model: Model) -> float:
    return getattr(model.settings, "scale%d" % model.place)  # noqa: UP031


def _joined(model: Model) -> float:
    first, second = "sc", "ale1"
    return getattr(model.settings, f"{first}{second}")


def _within(model: Model) -> float:
    return sum(model.settings.__dict__[name] for name in model.settings.chosen)


READS: dict[str, Callable[[Model], float]] = {
    "dotted": lambda model: model.settings.scale1,
    "quoted": lambda model: getattr(model.settings, "scale1"),  # noqa: B009
    "formatted": _formatted,
    "divided": _divided,
    "joined": _joined,
    "held": lambda model: getattr(model.settings, model.settings.chosen[0]),
    "vars": lambda model: vars(model.settings)[model.settings.chosen[0]],
    "table": lambda model: model.settings.__dict__[model.settings.chosen[0]],
    "own_table": lambda model: model.settings.read(model.settings.chosen[0]),
    "table_in_generator": _within,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_a_run_reads_is_watched(read: Callable[[Model], float]) -> None:
    model, x = lfpgraph.wrap(Model(read), engine="static"), torch.ones(2, 3)
    before = model(x)
    model.settings.scale1 = 3.0
    torch.testing.assert_close(model(x), before * 1.5)


@pytest.mark.parametrize("name", ["dotted", "quoted", "formatted", "divided", "held"])
def test_what_no_run_reads_may_change(name: str) -> None:
    """What a trainer writes into a model's settings when it saves them costs no new trace."""
    model, x = lfpgraph.wrap(Model(READS[name]), engine="static"), torch.ones(2, 3)
    model(x)
    for i in range(3):
        model.settings.title, model.settings.tags = f"t{i}", ["x"]
        model.settings.new = i
        model(x)
    assert lfpgraph.explain_wrap(model).traces == 1
