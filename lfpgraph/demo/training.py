"""A model trained by feedback and, beside it, its twin trained by backprop: same start, same batches, steps in turn."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..reports.operations import operation_table, plan_of, reward_summary
from ..training import Trainer, suggest_lr
from .data import Arrays
from .layers import Layers

__all__ = ["Options", "Result", "Run", "compare"]


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        lr: of both ways; None finds one for each by `suggest_lr`.
        clip: the largest norm of all gradients together, None for none.
    """

    epochs: int = 15
    batch_size: int = 64
    lr: float | None = 3e-3
    optimizer: str = "AdamW"
    clip: float | None = 1.0
    composite: str | Composite = "lfp"
    seed: int = 0
    compare: bool = True


@dataclass
class Run:
    """One way of training: held-out metric after each epoch, seconds of each step, how many parameters backward reached.

    Attributes:
        losses, rates: of each step. layers: what the matrices were handed, by epoch.
    """

    way: str
    metric: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    rewarded: tuple[int, int] = (0, 0)
    lr: float = 0.0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    layers: Layers = field(default_factory=Layers)

    @property
    def median_step(self) -> float:
        return statistics.median(self.step_seconds) if self.step_seconds else float("nan")


@dataclass
class Result:
    """What `compare` found. `operations` is the table of the feedback plan."""

    name: str
    lfp: Run
    backprop: Run | None
    operations: list[dict[str, Any]]
    model: nn.Module
    metric: str

    @property
    def ratio(self) -> float:
        """Median feedback step over median backprop step, measured in turn in one run."""
        return self.lfp.median_step / self.backprop.median_step if self.backprop else float("nan")

    def to_json(self) -> dict[str, Any]:
        runs = [self.lfp] + ([self.backprop] if self.backprop else [])
        return {
            "model": self.name,
            "metric": self.metric,
            "runs": {
                r.way: {
                    "by_epoch": r.metric,
                    "step_s": r.median_step,
                    "rewarded": r.rewarded,
                    "loss": r.losses,
                    "lr": r.lr,
                    "rates": r.rates,
                    "layers": r.layers.to_json(),
                }
                for r in runs
            },
            "step_ratio": None if self.backprop is None else self.ratio,
            "operations": self.operations,
        }


def compare(
    name: str,
    model: nn.Module,
    train: Arrays,
    test: Arrays,
    loss: Callable[[Tensor, Tensor], Tensor],
    options: Options,
    on_step: Callable[[Result], None] = lambda result: None,
    metric: str = "accuracy",
) -> Result:
    """Train `model` by feedback and a copy by backprop; `on_step` is called after each pair of steps.

    Raises:
        InputError: every parameter is frozen.
    """
    twins = {"lfp": model} | ({"backprop": copy.deepcopy(model)} if options.compare else {})
    runs = {way: Run(way) for way in twins}
    trainers = {}
    for way, twin in twins.items():
        how: dict[str, Any] = {
            "loss": loss, "optimizer": options.optimizer, "batch_size": options.batch_size, "clip": options.clip,
            "seed": options.seed, "composite": options.composite if way == "lfp" else None, "device": "cpu",
        }  # fmt: skip
        runs[way].lr = suggest_lr(twin, train, **how) if options.lr is None else options.lr
        trainers[way] = Trainer(
            twin, train, test, lr=runs[way].lr, scheduler="onecycle", epochs=options.epochs, progress=False,
            metrics=["accuracy"] if metric == "accuracy" else [], **how,
        )  # fmt: skip
    result = Result(name, runs["lfp"], runs.get("backprop"), [], model, metric)
    steps = {way: trainer.iterate() for way, trainer in trainers.items()}
    for done in range(trainers["lfp"].total_steps or 0):
        for way, run in runs.items():
            torch.manual_seed(options.seed + done)  # the same draws for both
            record = next(steps[way])
            run.step_seconds += [record["seconds"]] * (done > 0)
            run.losses.append(record["loss"])
            run.rates.append(record["lr"])
            run.layers.look(twins[way], done)
            _note(run, trainers[way], metric)
        if done == 0:
            result.operations = operation_table(plan_of(model))
            for way, twin in twins.items():
                runs[way].rewarded = reward_summary(twin)
        on_step(result)
    for way, run in runs.items():
        next(steps[way], None)  # the last evaluation
        _note(run, trainers[way], metric)
    return result


def _note(run: Run, trainer: Trainer, metric: str) -> None:
    """Take over the metric of the epochs that are over."""
    before, run.metric = len(run.metric), [record[f"eval_{metric}"] for record in trainer.history]
    if len(run.metric) > before:
        run.layers.close()
