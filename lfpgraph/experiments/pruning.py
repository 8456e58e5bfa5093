"""Accuracy against sparsity, weights taken away by magnitude and by feedback (LFP, section on pruning)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays
from ..wrapping.wrapper import is_wrapped, unwrap, wrap
from .common.data import flat_digits
from .common.harness import Case, Report, Settings, Way, accuracy, evaluate, fit
from .common.models import mlp, seeded

__all__ = ["accuracy_at", "magnitude", "run"]

SPARSITIES = [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98]


def run(settings: Settings) -> Report:
    """Models trained in each way lose weights without further training.

    The metric is the mean accuracy over sparsities of 60 to 95 %; each case's curve holds all of them.
    """
    train, test = flat_digits()
    ways = [Way("LFP", "lfp-epsilon", cross_entropy), Way("backprop", None, cross_entropy)]
    found: dict[tuple[str, str], Case] = {}
    start = seeded(lambda: mlp([64, 128, 64, 10]))

    def prune(case: Case, seed: int, model: nn.Module) -> None:
        plain = copy.deepcopy(model)
        if is_wrapped(plain):
            unwrap(plain)
        for name, scores in (("by magnitude", magnitude(plain)), ("by feedback", _feedback(plain, train))):
            curve = [accuracy_at(plain, scores, sparsity, test) for sparsity in SPARSITIES]
            own = found.setdefault((name, case.way), Case(name, case.way))
            own.curves.append(curve)
            own.values.append(sum(v for v, s in zip(curve, SPARSITIES) if 0.6 <= s <= 0.95) / 6)
            own.more.setdefault("near_zero", []).append(_near_zero(plain))

    trained = fit(start(0), ways, train, test, settings, epochs=20, name="dense", after=prune, start=start)
    cases = trained + sorted(found.values(), key=lambda c: (c.model, c.way))
    notes = [f"sparsities {SPARSITIES}; the metric of the pruned rows is the mean accuracy at 60 to 95 %"]
    for case in found.values():
        for sparsity in (0.8, 0.9, 0.95):
            values = [curve[SPARSITIES.index(sparsity)] for curve in case.curves]
            notes.append(f"{case.model}, {case.way}, {sparsity:.0%}: {100 * sum(values) / len(values):.1f} %")
    return Report("pruning", "accuracy", cases, _draw, (9, 4), notes)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def magnitude(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in _weights(model).items()}


def _feedback(model: nn.Module, train: Arrays) -> dict[str, Tensor]:
    """Size of each weight's feedback, summed over batches of the training set."""
    twin = wrap(copy.deepcopy(model), "lfp-epsilon")
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
    kinds = ["by magnitude", "by feedback"]
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), kinds):
        for case in [c for c in report.cases if c.model == kind]:
            mean = [100 * sum(v) / len(v) for v in zip(*case.curves)]
            axes.plot([100 * s for s in SPARSITIES], mean, marker="o", label=f"trained by {case.way}")
        axes.set_title(f"pruned {kind}")
        axes.set_xlabel("weights taken away, %")
        axes.legend()
    figure.axes[0].set_ylabel("accuracy, %")
