"""What a trained network bears: weights taken away (LFP, section on pruning), noise on them, and few bits for each."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays
from ..explain.importances import quantise
from ..wrapping.wrapper import is_wrapped, unwrap, wrap
from .common.data import flat_digits
from .common.harness import Case, Report, Settings, Way, accuracy, evaluate, fit
from .common.models import mlp, seeded
from .common.rates import chosen_rates

__all__ = ["accuracy_at", "magnitude", "run"]

SPARSITIES = [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98]
NOISES = [0.1, 0.25, 0.5, 0.75, 1.0]  # of a matrix's root mean square
BITS = [2, 3, 4, 6, 8]
POINTS: dict[str, Sequence[float]] = {
    "by magnitude": SPARSITIES,
    "by feedback": SPARSITIES,
    "noise": NOISES,
    "bits": BITS,
    "bits, least squares": BITS,
}
WORTH = dict.fromkeys(
    ("by magnitude", "by feedback"), [s for s in SPARSITIES if 0.6 <= s <= 0.95]
)  # what the mean is of
RATES = (1e-3, 3e-3, 1e-2)


def run(settings: Settings) -> Report:
    """Models trained in each way, at its own best rate, lose weights, or precision, without further training.

    Metrics are means: of the accuracies with 60 to 95 % of the weights gone, with each amount of noise, with each number of
    bits. Each case's curve holds all of them.
    """
    train, test = flat_digits()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    start = seeded(lambda: mlp([64, 128, 64, 10]))

    def damage(seed: int, model: nn.Module) -> dict[str, Any]:
        plain = copy.deepcopy(model)
        if is_wrapped(plain):
            unwrap(plain)
        curves = dict(_damages(plain, train, test, seed))
        return {**curves, "near_zero": _near_zero(plain), "moved": _moved(start(seed), plain)}

    chosen = chosen_rates(start(0), ways, RATES, train, settings, epochs=20, start=start)
    at_best = [replace(way, lr=case.more["lr"]) for way, case in zip(ways, chosen)]
    trained = fit(start(0), at_best, train, test, settings, epochs=20, name="dense", after=damage, start=start)
    notes, cases = [f"{way.name}: rate {way.lr:g}, chosen on a validation part" for way in at_best], []
    for case in trained:
        near, moved = (100 * statistics.fmean(case.more[key]) for key in ("near_zero", "moved"))
        notes.append(
            f"{case.way}: {near:.1f} % of the weights are below 0.01; {moved:.1f} % hold nine tenths of the way"
        )
        for name, points in POINTS.items():
            worth = [i for i, at in enumerate(points) if at in WORTH.get(name, points)]
            curves = case.more[name]
            values = [statistics.fmean(curve[i] for i in worth) for curve in curves]
            cases.append(Case(name, case.way, values, curves))
            means = (f"{at:g}: {100 * statistics.fmean(v):.1f} %" for at, v in zip(points, zip(*curves)))
            notes.append(f"{name}, {case.way}, {', '.join(means)}")
    cases = trained + sorted(cases, key=lambda c: (c.model, c.way))
    return Report("pruning", "accuracy", cases, _draw, (16, 4), notes)


def _damages(model: nn.Module, train: Arrays, test: Arrays, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Name of every kind of damage, and the accuracy with each amount of it."""
    for name, scores in (("by magnitude", magnitude(model)), ("by feedback", _feedback(model, train))):
        yield name, [accuracy_at(model, scores, sparsity, test) for sparsity in SPARSITIES]
    yield "noise", [_noisy(model, noise, test, seed) for noise in NOISES]
    yield "bits", [_coarse(model, bits, test, "largest") for bits in BITS]
    yield "bits, least squares", [_coarse(model, bits, test, "squares") for bits in BITS]


@torch.no_grad()
def _noisy(model: nn.Module, noise: float, test: Arrays, seed: int, draws: int = 20) -> float:
    """Mean accuracy over draws of Gaussian noise on each matrix, of `noise` times its root mean square."""
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        changed = copy.deepcopy(model)
        for p in _weights(changed).values():
            p += noise * p.square().mean().sqrt() * torch.randn(p.shape, generator=generator)
        values.append(evaluate(changed, test, accuracy))
    return statistics.fmean(values)


def _coarse(model: nn.Module, bits: int, test: Arrays, fit: str) -> float:
    rounded = copy.deepcopy(model)
    quantise(rounded, bits, fit=fit)
    return evaluate(rounded, test, accuracy)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def magnitude(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in _weights(model).items()}


def _feedback(model: nn.Module, train: Arrays) -> dict[str, Tensor]:
    """Size of each weight's feedback, summed over batches of the training set."""
    twin = wrap(copy.deepcopy(model), "lfp")
    scores = {name: torch.zeros_like(p) for name, p in _weights(twin).items()}
    for x, y in zip(train[0].split(64), train[1].split(64)):
        twin.zero_grad(set_to_none=True)
        cross_entropy(twin(x), y).backward()
        for name, p in _weights(twin).items():
            assert p.grad is not None
            scores[name] += p.grad.abs()
    return scores


def _near_zero(model: nn.Module) -> float:
    flat = torch.cat([p.detach().abs().flatten() for p in _weights(model).values()])
    return (flat < 1e-2).float().mean().item()


def _moved(before: nn.Module, after: nn.Module) -> float:
    """The share of the weights that hold nine tenths of the way that all have gone (of its square)."""
    ways = [(p.detach() - q.detach()).flatten() for p, q in zip(_weights(after).values(), _weights(before).values())]
    gone = torch.cat(ways).square().sort(descending=True).values.cumsum(0)
    return (gone < 0.9 * gone[-1]).float().mean().item()


def accuracy_at(model: nn.Module, scores: dict[str, Tensor], sparsity: float, test: Arrays) -> float:
    """Accuracy with the weights of the lowest scores, over all layers together, set to zero."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    threshold = flat.kthvalue(round(sparsity * len(flat))).values if sparsity else -torch.ones(())
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in _weights(pruned).items():
            p *= scores[name] > threshold
    return evaluate(pruned, test, accuracy)


def _draw(figure: Any, report: Report) -> None:
    labels = {
        "noise": "noise over the weights' size",
        "bits": "bits of a weight",
        "bits, least squares": "bits of a weight, scaled by least squares",
    }
    for axes, (kind, points) in zip(figure.subplots(1, len(POINTS), sharey=True), POINTS.items()):
        for case in [c for c in report.cases if c.model == kind]:
            mean = [100 * statistics.fmean(v) for v in zip(*case.curves)]
            axes.plot(points, mean, marker="o", label=f"trained by {case.way}")
        axes.set_xlabel(labels.get(kind, f"share of weights taken away {kind}"))
        axes.legend()
    figure.axes[0].set_ylabel("accuracy, %")
