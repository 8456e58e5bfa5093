"""What the experiments share: one plain training loop, seeds, tables and JSON."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...comparison.learners import output_of
from ...composites.composite import Composite
from ...demo.data import Arrays
from ...rewards import reward_loss
from ...training.policies import Policy
from ...wrapping.wrapper import wrap
from ...writing import written_whole
from .runs import Runs

__all__ = ["Case", "Report", "Settings", "Way", "accuracy", "fit", "rewarded", "spread_text"]

Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """How much to run: `seeds` of them from `first` on. `effort` multiplies the epochs; of less than one, the samples.

    Attributes:
        runs: where and how.
        experiment: its name, by which the file of runs knows it.
    """

    seeds: int = 3
    effort: float = 1.0
    progress: Callable[[str], None] = lambda line: None
    first: int = 0
    runs: Runs = Runs()
    experiment: str = ""

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first, self.first + self.seeds)

    def epochs(self, usual: int) -> int:
        return max(1, round(usual * self.effort))


@dataclass(frozen=True)
class Way:
    """A way of training. `composite` None is plain backprop by autograd.

    Attributes:
        optimizer: a class of torch.optim by name, or what makes one of the model's named parameters and a rate.
        gradients: sets each parameter's `.grad` by itself, given the model, a batch and its labels, in place of backward.
        policy: makes the update policy of a run.
    """

    name: str
    composite: str | Composite | None
    objective: Objective
    lr: float = 3e-3
    clip: float | None = 1.0
    optimizer: str | Callable[[Sequence[tuple[str, Tensor]], float], torch.optim.Optimizer] = "AdamW"
    gradients: Callable[[nn.Module, Tensor, Tensor], None] | None = None
    policy: Callable[[], Policy] | None = None


@dataclass
class Case:
    """What one way did with one model: `values` the final metric of each seed, `curves` it after every epoch."""

    model: str
    way: str
    values: list[float] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass
class Report:
    """An experiment's result. `metric` is "accuracy" or the name of a loss; `draw` puts it on a matplotlib figure."""

    name: str
    metric: str
    cases: list[Case]
    draw: Callable[[Any, Report], None]
    size: tuple[float, float] = (8.0, 4.0)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        rows = [{**vars(case), "mean": case.mean, "spread": case.spread} for case in self.cases]
        return {
            "experiment": self.name,
            "metric": self.metric,
            "torch": torch.__version__,
            "cases": rows,
            "notes": self.notes,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: model, then one column for each way; the first row is the head."""
        ways = list(dict.fromkeys(case.way for case in self.cases))
        cells = {(c.model, c.way): spread_text(c, self.metric) for c in self.cases}
        models = list(dict.fromkeys(case.model for case in self.cases))
        return [("", *ways), *((model, *(cells.get((model, way), "-") for way in ways)) for model in models)]

    def plot(self, file: Path) -> None:
        """Write the figure as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(figure, self)
        with written_whole(file) as new:
            figure.savefig(new, dpi=110)


def spread_text(case: Case, metric: str) -> str:
    """Mean and spread as a table shows them."""
    if metric == "accuracy":
        return f"{100 * case.mean:.1f} ± {100 * case.spread:.1f} %"
    return f"{case.mean:.3f} ± {case.spread:.3f}"


def rewarded(reward: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """A reward function as an objective, a mean over the batch."""
    return lambda outputs, labels: reward_loss(outputs, reward(outputs, labels)) / len(labels)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(-1) == labels).float().mean().item()


def fit(
    model: nn.Module,
    ways: Sequence[Way],
    train: Arrays,
    test: Arrays,
    settings: Settings,
    *,
    epochs: int,
    name: str = "",
    batch_size: int = 64,
    score: Callable[[Tensor, Tensor], float] = accuracy,
    after: Callable[[int, nn.Module], dict[str, Any]] | None = None,
    start: Callable[[int], nn.Module] | None = None,
) -> list[Case]:
    """Train a model in each way, from the same weights and with the same batches, once for every seed.

    Args:
        model: what `start(seed)` builds; its weights are replaced for each seed, so that it is traced once.
        score: of outputs and labels of the test set, after every epoch.
        after: called as `after(seed, model)` when a run is over, with the trained model, still wrapped. What it returns is kept
            with the run, and `more` of the case has a list of it for each key, an entry a seed.
        start: returns a fresh model for a seed (only its weights are taken).

    Returns:
        One case for each way.
    """
    if epochs * settings.effort < 1:
        rows = max(batch_size, round(len(train[0]) * epochs * settings.effort))
        train = train[0][:rows], train[1][:rows]

    @functools.cache
    def weights(seed: int) -> dict[str, Any]:
        return copy.deepcopy((start(seed) if start else model).state_dict())

    length, device = settings.epochs(epochs), settings.runs.device
    twin: Any = None
    wrapped: Any = None

    def trained(way: Way, seed: int) -> dict[str, Any]:
        nonlocal twin, wrapped
        if twin is None or way.composite is not wrapped:  # ways that differ in their rate alone share a trace
            twin, wrapped = copy.deepcopy(model).to(device), way.composite
            if wrapped is not None:
                wrap(twin, wrapped)
        twin.load_state_dict(weights(seed))
        data = [(x.to(device), y.to(device)) for x, y in (train, test)]
        curve, seconds = _train(twin, way, data[0], data[1], length, batch_size, seed, score)
        settings.progress(f"{name} {way.name} rate {way.lr:g} seed {seed}: {curve[-1]:.4f}")
        return {"curve": curve, "step_seconds": seconds, **({"after": after(seed, twin)} if after else {})}

    def made(way: Way, seed: int) -> dict[str, Any]:
        key = {"experiment": settings.experiment, "model": name, "way": way.name, "lr": way.lr, "seed": seed}
        key |= {
            "epochs": length,
            "samples": len(train[0]),
            "batch_size": batch_size,
            **({"after": True} if after else {}),
        }
        return settings.runs.make(key, partial(trained, way, seed))

    pairs = [(way, seed) for way in ways for seed in settings.numbers]
    runs = settings.runs.together([partial(made, way, seed) for way, seed in pairs])
    cases = {id(way): Case(name, way.name) for way in ways}
    for (way, _), run in zip(pairs, runs):
        case = cases[id(way)]
        case.curves.append(run["curve"])
        case.values.append(run["curve"][-1])
        case.step_seconds.append(run["step_seconds"])
        for key, value in run.get("after", {}).items():
            case.more.setdefault(key, []).append(value)
    return list(cases.values())


def _train(
    model: nn.Module, way: Way, train: Arrays, test: Arrays, epochs: int, batch_size: int, seed: int,
    score: Callable[[Tensor, Tensor], float],
) -> tuple[list[float], float]:  # fmt: skip
    """The score after every epoch, and the median of the seconds that a step took."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    if isinstance(way.optimizer, str):
        optimizer = getattr(torch.optim, way.optimizer)(parameters, lr=way.lr)
    else:
        optimizer = way.optimizer(named, way.lr)
    steps = epochs * -(-len(train[0]) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, way.lr, total_steps=steps + 1, cycle_momentum=False)
    curve, seconds = [], []
    held = None if way.policy is None else way.policy().attach(optimizer, model)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(train[0]), generator=generator).split(batch_size):
            begin = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            if way.gradients is not None:
                way.gradients(model, train[0][rows], train[1][rows])
            else:
                objective = way.objective(output_of(model, train[0][rows]), train[1][rows])
                if objective.requires_grad:  # a network that ends in a step has nothing to differentiate
                    objective.backward()
            if way.clip is not None:
                nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], way.clip)
            optimizer.step()
            schedule.step()
            seconds.append(time.perf_counter() - begin)
        curve.append(evaluate(model, test, score))
    if held is not None:
        held.remove()
    return curve, statistics.median(seconds)


@torch.no_grad()
def evaluate(model: nn.Module, data: Arrays, score: Callable[[Tensor, Tensor], float]) -> float:
    """The score on a whole set, in eval mode."""
    model.eval()
    value = score(output_of(model, data[0]), data[1])
    model.train()
    return value
