"""Which learning rate each way of training gets: the best of one grid, on a part of the training set that is held back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ...comparison.examples import held_back
from ...demo.data import Arrays
from .harness import Case, Settings, Way, fit

__all__ = ["at_best", "best_by_folds", "chosen_rates", "tuned"]


def chosen_rates(
    model: nn.Module, ways: Sequence[Way], rates: Sequence[float], train: Arrays, settings: Settings, *,
    name: str = "", lower_is_better: bool = False, **how: Any,
) -> list[Case]:  # fmt: skip
    """Each way at its best rate, trained on a part of the training set; the figures are those of the validation part.

    Every rate is tried with the first seed, the two best with all seeds, and the better mean wins.

    Args:
        how: what `fit` takes besides.

    Returns:
        A case for each way: `more["lr"]` is the rate, `more["tried"]` the values of every rate.
    """
    parts = held_back(train)

    def runs(tries: Sequence[Way], settings: Settings) -> list[Case]:
        return fit(model, tries, *parts, settings, name=name, **how)

    def worth(case: Case) -> float:
        mean = case.mean if math.isfinite(case.mean) else math.inf * (1 if lower_is_better else -1)
        return -mean if lower_is_better else mean

    def best_of(way: Way) -> Case:
        tries = [replace(way, lr=rate) for rate in rates]
        by_rate = dict(zip(rates, runs(tries, replace(settings, seeds=1))))
        best = sorted(by_rate, key=lambda rate: worth(by_rate[rate]), reverse=True)[:2]
        if settings.seeds > 1:
            again = runs([replace(way, lr=rate) for rate in best], replace(settings, seeds=settings.seeds - 1, first=1))
            for rate, more in zip(best, again):
                by_rate[rate].values += more.values
                by_rate[rate].curves += more.curves
                by_rate[rate].step_seconds += more.step_seconds
        rate = max(best, key=lambda rate: worth(by_rate[rate]))
        by_rate[rate].more |= {"lr": rate, "tried": {f"{r:g}": case.values for r, case in by_rate.items()}}
        return by_rate[rate]

    return settings.runs.together([partial(best_of, way) for way in ways])


def at_best(
    model: nn.Module, ways: Sequence[Way], rates: Sequence[float], train: Arrays, test: Arrays, settings: Settings, *,
    name: str = "", lower_is_better: bool = False, choosing: int | None = None, **how: Any,
) -> tuple[list[Case], list[str]]:  # fmt: skip
    """Each way at its own best rate, on held-out data; and notes that say which rates were chosen.

    Args:
        choosing: with how many seeds the rates are chosen; as many as all else by default.
        how: what `fit` takes besides.
    """
    few = replace(settings, seeds=min(choosing or settings.seeds, settings.seeds))

    def run(way: Way) -> Case:
        (chosen,) = chosen_rates(model, [way], rates, train, few, name=name, lower_is_better=lower_is_better, **how)
        (case,) = fit(model, [replace(way, lr=chosen.more["lr"])], train, test, settings, name=name, **how)
        case.more |= chosen.more
        return case

    cases = settings.runs.together([partial(run, way) for way in ways])
    return cases, [f"{name}, {c.way}: rate {c.more['lr']:g}, chosen on a validation part" for c in cases]


def best_by_folds(
    model: nn.Module, way: Way, rates: Sequence[float], train: Arrays, test: Arrays, settings: Settings, *,
    folds: int = 4, name: str = "", **how: Any,
) -> tuple[Case, str]:  # fmt: skip
    """A way at its own best rate, on held-out data, and a note of the rate; chosen by folds of the training set.

    Each fold is left out once, with a seed of its own, so all of the training set judges every rate. Larger scores are better.

    Args:
        how: what `fit` takes besides.
    """
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(1))
    parts = order.chunk(folds)

    def without(k: int) -> list[float]:
        rest = torch.cat([part for i, part in enumerate(parts) if i != k])
        inner, left_out = ((train[0][part], train[1][part]) for part in (rest, parts[k]))
        tries, once = [replace(way, lr=rate) for rate in rates], replace(settings, seeds=1, first=settings.first + k)
        return [case.mean for case in fit(model, tries, inner, left_out, once, name=f"{name}, without part {k}", **how)]

    by_fold = settings.runs.together([partial(without, k) for k in range(folds)])
    tried = dict(zip(rates, map(list, zip(*by_fold))))
    rate = max(rates, key=lambda rate: sum(tried[rate]) if math.isfinite(sum(tried[rate])) else -math.inf)
    (case,) = fit(model, [replace(way, lr=rate)], train, test, settings, name=name, **how)
    case.more |= {"lr": rate, "tried": {f"{r:g}": values for r, values in tried.items()}}
    return case, f"{name}, {case.way}: rate {rate:g}, chosen by {folds} folds of the training set"


def tuned(
    model: nn.Module, ways: Sequence[Way], rates: Sequence[float], train: Arrays, test: Arrays, settings: Settings, *,
    name: str = "", **how: Any,
) -> tuple[list[Case], list[str]]:  # fmt: skip
    """As `at_best`; and if the rates differ, also all ways at the rate of the last one, backprop."""
    cases, notes = at_best(model, ways, rates, train, test, settings, name=name, **how)
    common = cases[-1].more["lr"]
    others = [replace(way, lr=common) for way, case in zip(ways, cases) if case.more["lr"] != common]
    label = f"{name}, all at {common:g}"
    how = {key: value for key, value in how.items() if key not in ("lower_is_better", "choosing")}
    again = {case.way: case for case in fit(model, others, train, test, settings, name=label, **how)}
    for case in list(cases) if others else ():
        cases.append(again.get(case.way, replace(case, model=label)))
        cases[-1].more = {"lr": common}
    return cases, notes
