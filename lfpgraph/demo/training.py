"""A model trained by feedback and, beside it, its twin trained by backprop: same start, same batches, steps in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..composites import Composite
from ..errors import InputError
from ..reports.operations import operation_table, plan_of, reward_summary
from ..wrap import wrap
from .data import Arrays

__all__ = ["Options", "Result", "Run", "compare"]


@dataclass(frozen=True)
class Options:
    """How to train. `clip` is the largest norm of all gradients together, None for none."""

    epochs: int = 15
    batch_size: int = 64
    lr: float = 3e-3
    optimizer: str = "AdamW"
    clip: float | None = 1.0
    composite: str | Composite = "lfp-epsilon"
    seed: int = 0
    compare: bool = True


@dataclass
class Run:
    """One way of training: held-out metric after each epoch, seconds of each step, and what backward reached."""

    way: str
    metric: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    rewarded: tuple[int, int] = (0, 0)

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
            "runs": {r.way: {"by_epoch": r.metric, "step_s": r.median_step, "rewarded": r.rewarded} for r in runs},
            "step_ratio": None if self.backprop is None else self.ratio,
            "operations": self.operations,
        }


Loss = Callable[[Tensor, Tensor], Tensor]


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def _evaluate(model: nn.Module, data: Arrays, loss: Loss, metric: str) -> float:
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([_outputs(model, x) for x in data[0].split(256)])
        if metric == "accuracy":
            value = (outputs.argmax(-1) == data[1]).float().mean().item()
        else:
            value = loss(outputs, data[1]).item()
    model.train()
    return value


def compare(
    name: str,
    model: nn.Module,
    train: Arrays,
    test: Arrays,
    loss: Loss,
    options: Options,
    on_step: Callable[[Result], None] = lambda result: None,
    metric: str = "accuracy",
) -> Result:
    """Train `model` by feedback and a copy by backprop; `on_step` is called after each pair of steps.

    Raises:
        InputError: every parameter is frozen.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{name}: {type(model).__name__} has no parameter that requires a gradient.")
    model.train()
    twins = {"lfp": model}
    if options.compare:
        twins["backprop"] = copy.deepcopy(model)
    wrap(model, options.composite)
    optimizers = {k: getattr(torch.optim, options.optimizer)(m.parameters(), lr=options.lr) for k, m in twins.items()}
    steps = options.epochs * ((len(train[0]) + options.batch_size - 1) // options.batch_size)
    schedules = {
        k: torch.optim.lr_scheduler.OneCycleLR(o, options.lr, total_steps=steps, cycle_momentum=False)
        for k, o in optimizers.items()
    }
    runs = {way: Run(way) for way in twins}
    result = Result(name, runs["lfp"], runs.get("backprop"), [], model, metric)
    generator = torch.Generator().manual_seed(options.seed)
    done = 0
    for _ in range(options.epochs):
        for rows in torch.randperm(len(train[0]), generator=generator).split(options.batch_size):
            for way, twin in twins.items():
                torch.manual_seed(options.seed + done)
                start = time.perf_counter()
                value = loss(_outputs(twin, train[0][rows]), train[1][rows])
                optimizers[way].zero_grad(set_to_none=True)
                value.backward()
                if options.clip is not None:
                    nn.utils.clip_grad_norm_(twin.parameters(), options.clip)
                optimizers[way].step()
                if done > 0:
                    runs[way].step_seconds.append(time.perf_counter() - start)
                schedules[way].step()
            if done == 0:
                result.operations = operation_table(plan_of(model))
                for way, twin in twins.items():
                    runs[way].rewarded = reward_summary(twin)
            done += 1
            on_step(result)
        for way, twin in twins.items():
            runs[way].metric.append(_evaluate(twin, test, loss, metric))
        on_step(result)
    return result
