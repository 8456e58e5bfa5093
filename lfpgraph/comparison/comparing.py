"""`compare`: the rates are chosen on a part of the training set, then every way trains on all of it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from ..composites.composite import Composite
from ..errors import InputError, LfpGraphError, one_line
from ..wrapping.wrapper import is_wrapped, wrap
from .memory import LiveBytes
from .methods import RATES, Loss, Method, method_named
from .results import Comparison, WayResult
from .runs import Budget, Run, Task, backward
from .runs import train as train_once

__all__ = ["compare", "held_back"]

Arrays = tuple[Tensor, Tensor]
Progress = Callable[[str, float, int], None]


def held_back(data: Arrays, share: float = 0.25) -> tuple[Arrays, Arrays]:
    """A training set in two: what is still trained on, and the validation part. The split is the same at every call."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1))
    validation, rest = order[: round(len(order) * share)], order[round(len(order) * share) :]
    return (data[0][rest], data[1][rest]), (data[0][validation], data[1][validation])


def compare(
    model: nn.Module | Callable[[], nn.Module],
    train: Arrays,
    test: Arrays,
    ways: Sequence[str | Composite | Method] = ("lfp", "backprop", "dfa", "usf", "mezo"),
    *,
    loss: Loss = cross_entropy,
    steps: int | None = None,
    seconds: float | None = None,
    rates: Sequence[float] = RATES,
    batch_size: int = 64,
    seeds: int = 1,
    first_seed: int = 0,
    name: str = "",
    progress: Progress = lambda text, done, total: None,
) -> Comparison:
    """Train copies of a model in several ways, from the same start, on the same batches, with the same budget.

    A fresh model is traced before its time runs. Each rate is tried with the whole budget and the first seed on three quarters
    of the training set, the best on the last quarter wins; then each seed trains on all of it. A way that cannot train
    this model is in the result with the reason.

    Args:
        model: what is trained, or a function that builds it, which is then called once for each seed. It is not changed.
        train, test: pairs of inputs and labels, on the model's device.
        ways: names of composites or of `METHODS`; composites or methods themselves.
        loss: of outputs and labels. With classes as labels, quality is accuracy; else it is the loss.
        steps, seconds: the budget of a run, one of the two; 300 steps if none is given. Seconds count steps alone.
        rates: the grid, for ways that have none of their own.
        seeds, first_seed: of weights (where `model` builds them) and batches.
        progress: called as `progress(text, runs done, runs in all)`.

    Raises:
        CompositeError: an unknown way.
        InputError: nothing to compare, two budgets or none above zero, a wrapped model.
    """
    methods = [method_named(way) for way in ways]
    _check(methods, train, test, steps, seconds, rates, seeds, batch_size)
    budget = Budget(steps if steps is not None or seconds is not None else 300, seconds)
    classes = loss in (cross_entropy, nll_loss) and train[1].dim() == 1 and not train[1].is_floating_point()
    score = _accuracy if classes else lambda outputs, labels: float(loss(outputs, labels))
    task = Task(train, test, loss, score, batch_size)
    starts = {seed: _start(model, seed) for seed in range(first_seed, first_seed + seeds)}
    grids = [method.rates or tuple(rates) for method in methods]
    total, done = sum(len(grid) * (len(grid) > 1) + seeds for grid in grids), 0
    results = []
    for method, grid in zip(methods, grids):
        before = done

        def show(share: float, method: Method = method) -> None:
            progress(method.name, done + share, total)  # noqa: B023

        result = WayResult(method.name)
        results.append(result)
        try:
            twin, trained = _prepared(starts[first_seed], method, task, result)

            def run(rate: float, on: Task, seed: int, angles: bool = False) -> Run:
                nonlocal done
                trained.load_state_dict(starts[seed].state_dict())  # noqa: B023
                found = train_once(trained, twin, method, rate, on, budget, seed, show, angles)  # noqa: B023
                done += 1
                return found

            rate = grid[0]
            if len(grid) > 1:
                parts = held_back(train)
                result.tried = {
                    r: run(r, replace(task, train=parts[0], test=parts[1]), first_seed).quality for r in grid
                }
                rate = max(grid, key=lambda r: _worth(result.tried[r], classes))  # noqa: B023
            result.rate = rate
            result.runs = [run(rate, task, seed, angles=True) for seed in starts]
        except LfpGraphError as error:
            result.failure = one_line(error)
        done = before + len(grid) * (len(grid) > 1) + seeds
    return Comparison(name, "accuracy" if classes else "loss", str(budget), batch_size, results)


def _worth(quality: float, higher_is_better: bool) -> float:
    if not math.isfinite(quality):
        return -math.inf
    return quality if higher_is_better else -quality


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(-1) == labels).float().mean()) if bool(outputs.isfinite().all()) else math.nan


def _start(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    found = model if isinstance(model, nn.Module) else model()
    if not isinstance(found, nn.Module):
        raise InputError(f"compare needs an nn.Module, or a function that returns one, not {type(found).__name__}")
    if is_wrapped(found):
        raise InputError("compare wraps copies of the model itself: hand it over unwrapped (lfpgraph.unwrap)")
    return found


def _prepared(start: nn.Module, method: Method, task: Task, result: WayResult) -> tuple[nn.Module, nn.Module]:
    """An unwrapped copy and a wrapped one that has run; the time that took and the memory of a step go into the result."""
    twin, model = copy.deepcopy(start), copy.deepcopy(start)
    model.train()
    begin = time.perf_counter()
    if method.composite is not None:
        wrap(model, method.composite)
    x, labels = next(task.batches(0))
    for _ in range(2):
        backward(model, method, task.loss, x, labels)
        model.zero_grad(set_to_none=True)
    result.prepare_seconds = time.perf_counter() - begin
    with LiveBytes() as live:
        backward(model, method, task.loss, x, labels)
    model.zero_grad(set_to_none=True)
    result.peak_bytes = live.peak
    return twin, model


def _check(
    methods: list[Method], train: Arrays, test: Arrays, steps: int | None, seconds: float | None,
    rates: Sequence[float], seeds: int, batch_size: int,
) -> None:  # fmt: skip
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names):
        raise InputError(f"compare needs ways, each once: {', '.join(names) or 'none given'}")
    if steps is not None and seconds is not None:
        raise InputError("a budget is a number of steps or of seconds, not both")
    if (steps is not None and steps < 1) or (seconds is not None and not 0 < seconds < math.inf):
        raise InputError(f"a budget must be finite and above zero: steps={steps}, seconds={seconds}")
    if not rates or seeds < 1 or batch_size < 1:
        raise InputError(f"rates={list(rates)}, seeds={seeds}, batch_size={batch_size}: each needs at least one")
    if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
        raise InputError(f"rates must be finite and above zero, not {', '.join(map(str, wrong))}")
    for part in (train, test):
        if len(part[0]) != len(part[1]) or len(part[0]) == 0:
            raise InputError(f"inputs and labels must be equally many and not none: {len(part[0])} and {len(part[1])}")
    if len(train[0]) < 4 and len(rates) > 1:
        raise InputError(f"{len(train[0])} samples leave none to choose a rate on: give one rate")
