"""`compare`: the rates are chosen on a part of the training set, then every way trains on all of it."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss
from torch.utils import _pytree as pytree

from ..composites.composite import Composite
from ..errors import InputError, LfpGraphError, one_line
from ..wrapping.wrapper import is_wrapped
from .examples import IGNORED, Examples
from .learners import Learner, Loss, output_of
from .memory import LiveBytes, held_bytes
from .methods import RATES, Method, methods_named
from .results import Comparison, WayResult
from .runs import Budget, Run, Task, optimizer_of, step
from .runs import train as train_once

__all__ = ["compare"]

log = logging.getLogger("lfpgraph")
Progress = Callable[[str, float, int], None]


def compare(
    model: nn.Module | Callable[[], nn.Module],
    train: Any,
    test: Any,
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
        train, test: pairs of inputs and labels, on the model's device. Inputs are a tensor, a tuple of positional or a dict of
            keyword arguments, whose tensors have as many rows as there are labels. Or a DataLoader of such pairs, whose batches
            stay as they are (a graph and its edges: `DataLoader([((features, edges), labels)], batch_size=None)`); a class of
            -100 marks a row that does not count.
        ways: names of composites or of `METHODS`; composites or methods themselves.
        loss: of outputs and labels. With classes as labels, quality is accuracy; else it is the loss (numbers as labels need
            another one than the default).
        steps, seconds: the budget of a run, one of the two; 300 steps if none is given. Seconds count steps alone.
        rates: the grid, for ways that have none of their own.
        seeds, first_seed: of weights (where `model` builds them) and batches.
        progress: called as `progress(text, runs done, runs in all)`.

    Raises:
        CompositeError: an unknown way.
        InputError: nothing to compare, two budgets or none above zero, a wrapped model, labels that the loss does not fit.
    """
    methods = methods_named(ways)
    given, held_out = Examples.of(train, "train"), Examples.of(test, "test")
    _check(methods, given, steps, seconds, rates, seeds, batch_size)
    budget = Budget(steps if steps is not None or seconds is not None else 300, seconds)
    classes = loss in (cross_entropy, nll_loss) and given.has_classes
    score = _right if classes else lambda outputs, labels: (float(loss(outputs, labels)) * len(labels), len(labels))
    task = Task(given, held_out, loss, score, batch_size)
    starts = {seed: _start(model, seed) for seed in range(first_seed, first_seed + seeds)}
    _try_out(starts[first_seed], task)
    grids = [method.rates or tuple(rates) for method in methods]
    if any(len(grid) > 1 for grid in grids):
        chosen_on = given.held_back()
    total, done = sum(len(grid) * (len(grid) > 1) + seeds for grid in grids), 0
    results = []
    for method, grid in zip(methods, grids):
        before = done

        def show(share: float, method: Method = method) -> None:
            progress(method.name, done + share, total)  # noqa: B023

        result = WayResult(method.name)
        results.append(result)
        try:
            twin, learner = _prepared(starts[first_seed], method, task, grid[0], result)

            def run(rate: float, on: Task, seed: int, angles: bool = False) -> Run:
                nonlocal done
                learner.model.load_state_dict(starts[seed].state_dict())  # noqa: B023
                found = train_once(learner, twin, method, rate, on, budget, seed, show, angles)  # noqa: B023
                done += 1
                return found

            rate = grid[0]
            if len(grid) > 1:
                part = replace(task, train=chosen_on[0], test=chosen_on[1])
                result.tried = {r: run(r, part, first_seed).quality for r in grid}
                rate = max(grid, key=lambda r: _worth(result.tried[r], classes))  # noqa: B023
            result.rate = rate
            result.runs = [run(rate, task, seed, angles=True) for seed in starts]
        except LfpGraphError as error:
            result.failure = one_line(error)
        except Exception as error:  # of one way; the others go on
            log.info("%s cannot train %s", method.name, name, exc_info=True)
            result.failure = one_line(error) and f"{type(error).__name__}: {one_line(error)}" or type(error).__name__
        done = before + len(grid) * (len(grid) > 1) + seeds
    return Comparison(name, "accuracy" if classes else "loss", str(budget), batch_size, results)


def _worth(quality: float, higher_is_better: bool) -> float:
    if not math.isfinite(quality):
        return -math.inf
    return quality if higher_is_better else -quality


def _right(outputs: Tensor, labels: Tensor) -> tuple[float, int]:
    """How many are right, of how many; classes are the second dimension, as in cross_entropy."""
    counted = labels != IGNORED
    right = (outputs.argmax(1) == labels) & counted
    return (float(right.sum()) if bool(outputs.isfinite().all()) else math.nan), int(counted.sum())


def _start(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    found = model if isinstance(model, nn.Module) else model()
    if not isinstance(found, nn.Module):
        raise InputError(f"compare needs an nn.Module, or a function that returns one, not {type(found).__name__}")
    if is_wrapped(found):
        raise InputError("compare wraps copies of the model itself: hand it over unwrapped (lfpgraph.unwrap)")
    return found


def _try_out(model: nn.Module, task: Task) -> None:
    """See that the model and the loss run, so that what is wrong with them is not said of each way.

    Raises:
        InputError: they do not, or the loss is cross-entropy and the labels are no classes.
    """
    twin = copy.deepcopy(model).train()
    inputs, labels = next(task.batches(0))
    if task.loss is cross_entropy and labels.is_floating_point():
        shares = labels.movedim(1, -1) if labels.dim() > 1 else labels
        if shares.shape[-1] < 2 or bool((shares < 0).any()) or not torch.allclose(shares.sum(-1), shares.new_ones(())):
            raise InputError(
                "labels are numbers, and cross_entropy takes classes, or shares of classes that add up to 1: give another loss, "
                "such as torch.nn.functional.mse_loss (--loss mse)"
            )
    random = torch.get_rng_state()
    try:
        task.loss(output_of(twin, inputs), labels)
    except LfpGraphError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} or the loss does not run on the first batch: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        torch.set_rng_state(random)
    if any(bool(x.isnan().any()) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)):
        log.warning("inputs of the first batch hold NaN")


def _prepared(
    start: nn.Module, method: Method, task: Task, rate: float, result: WayResult
) -> tuple[nn.Module, Learner]:
    """An unwrapped copy, and what trains another one; the time that took and the memory of a step go into the result."""
    twin, model = copy.deepcopy(start), copy.deepcopy(start)
    model.train()
    begin = time.perf_counter()
    batch = next(task.batches(0))
    learner = method.learner_of(model, task.loss, batch[0])
    optimizer = optimizer_of(learner, method, rate)
    for _ in range(2):
        step(learner, method, optimizer, rate, batch)
    optimizer.zero_grad(set_to_none=True)
    result.prepare_seconds = time.perf_counter() - begin
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    held = [*model.parameters(), *model.buffers(), *learner.more_parameters(), *learner.kept(), *state]
    result.kept_bytes = held_bytes(held)
    with LiveBytes() as live:
        step(learner, method, optimizer, rate, batch)
    optimizer.zero_grad(set_to_none=True)
    result.peak_bytes = live.peak
    return twin, learner


def _check(
    methods: list[Method], train: Examples, steps: int | None, seconds: float | None, rates: Sequence[float],
    seeds: int, batch_size: int,
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
    if len(train) < 4 and train.rows and len(rates) > 1:
        raise InputError(f"{len(train)} samples leave none to choose a rate on: give one rate")
