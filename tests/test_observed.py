"""`tracing.guards.Observation`: which functions of a run are watched, and what of the run it keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph
from lfpgraph.live.engine import LiveEngine
from lfpgraph.tracing.guards import Observation


def times(by: float) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return x * by

    return function


def test_a_function_older_than_the_run_is_watched_though_the_run_makes_one_like_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.kept = nn.Linear(4, 4), times(2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.kept(times(3.0)(self.lin(x)))

    model = Both()
    with Observation(model) as seen:
        model(torch.randn(3, 4))
    guard = seen.guard
    assert seen.why_live is None and guard is not None
    assert guard.changed() is None
    model.kept.__closure__[0].cell_contents = 5.0  # type: ignore[index]
    assert "by" in (guard.changed() or "")


def test_watching_keeps_nothing_of_the_run_alive() -> None:
    """What a function that has returned held is gone when the run ends, so that the first call is planned like later ones."""
    gone = []

    def inner(x: Tensor) -> Tensor:
        kept = x.exp()
        gone.append(weakref.ref(kept))
        return (lambda: kept * 2)()

    def look() -> list[Tensor | None]:  # Python 3.11 and 3.12 give a frame free at the next call
        return [ref() for ref in gone]

    class Model(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor | None]:
            inner(x)
            return look()

    model = Model()
    with Observation(model):
        assert model(torch.randn(3, 4)) == [None]


def test_this_librarys_own_machinery_is_not_the_models_code() -> None:
    """A run that the live engine records says of the model what a plain run says."""
    model, batch = build_tiny("llama")
    engine = LiveEngine(model, lfpgraph.get_composite("lfp-epsilon"), "derive", False)
    for _ in range(2):
        with Observation(model) as seen:
            engine.run(model.forward, (), batch)
        if not seen.may_settle:
            break
    assert seen.why_live is None
    assert seen.guard is not None and seen.guard.changed() is None


class OfItself(nn.Module):
    """Holds functions that read the model from their closure."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(1, 3)), 2.0
        self.functions = [lambda x: x * self.weight * self.scale]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.functions[0](x)
        return out


def test_functions_of_another_model_are_not_watched() -> None:
    """Where Python does not say which function of one code was called, all are looked for."""
    other, model = OfItself(), OfItself()
    with Observation(model) as seen:
        model(torch.ones(2, 3))
    guard = seen.guard
    assert guard is not None
    other.scale = 3.0
    assert guard.changed() is None
    model.scale = 3.0
    assert "scale" in (guard.changed() or "")


def test_no_garbage_is_collected_in_the_midst_of_a_trace() -> None:
    """A generator that has stopped within `no_grad` would be closed there, and torch's tracer note that as the model's doing."""
    collects: list[bool] = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            collects.append(gc.isenabled())
            return x.sin()

    lfpgraph.trace(Model(), torch.randn(2, 3))
    assert collects and not any(collects) and gc.isenabled()
