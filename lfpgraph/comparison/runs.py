"""One run of one way of training, and what is measured meanwhile: quality, seconds, the angle to the gradient."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .examples import Batch, Examples
from .learners import Learner, Loss
from .methods import Method

__all__ = ["Budget", "Run", "Task", "angle", "step", "train"]

POINTS = 10  # how often a run is looked at
WARM_UP = 0.1  # share of the budget in which the rate rises


@dataclass(frozen=True)
class Budget:
    """How long a run is: a number of steps, or of seconds spent in steps."""

    steps: int | None = None
    seconds: float | None = None

    def spent(self, steps: int, seconds: float) -> float:
        """The share that is spent."""
        return steps / self.steps if self.steps is not None else seconds / (self.seconds or 1.0)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.seconds:g} s of training"


@dataclass(frozen=True)
class Task:
    """What is learnt. `score` is of outputs and labels: a sum, and over how many."""

    train: Examples
    test: Examples
    loss: Loss
    score: Callable[[Tensor, Tensor], tuple[float, int]]
    batch_size: int

    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches without end, the same for every way."""
        return self.train.batches(seed, self.batch_size)


@dataclass
class Run:
    """What happened.

    Attributes:
        curve: points of (steps, seconds, score).
        angles: for each point but the last, degrees by layer.
    """

    seed: int
    rate: float
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    angles: list[dict[str, float | None]] = field(default_factory=list)
    step_seconds: float = math.nan

    @property
    def quality(self) -> float:
        """The score at the end."""
        return self.curve[-1][2]


def step(
    learner: Learner, method: Method, optimizer: torch.optim.Optimizer, rate: float, batch: Batch,
    look: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """One step; `look` is called when the gradients are there."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    learner.gradients(*batch)
    look()
    if method.clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], method.clip)
    optimizer.step()


def optimizer_of(learner: Learner, method: Method, rate: float) -> torch.optim.Optimizer:
    """An optimizer for the model and what is trained beside it."""
    parameters = [p for p in [*learner.model.parameters(), *learner.more_parameters()] if p.requires_grad]
    kind = getattr(torch.optim, method.optimizer)
    fused = "fused" in inspect.signature(kind).parameters and all(p.is_floating_point() for p in parameters)
    return kind(parameters, lr=rate, **({"fused": True} if fused else {}))  # fused: it makes no copies of all weights


def train(
    learner: Learner, twin: nn.Module, method: Method, rate: float, task: Task, budget: Budget, seed: int,
    progress: Callable[[float], None], angles: bool,
) -> Run:  # fmt: skip
    """Train a model from where it is.

    Args:
        twin: the same model unwrapped; it lends itself to the true gradient.
        progress: is told the share of the budget that is spent.
        angles: measure them.
    """
    torch.manual_seed(seed)
    model = learner.model
    model.train()
    learner.reset()
    torch.manual_seed(seed)  # whatever was drawn for a way, what the model draws is the same in all
    run, elapsed, looks = Run(seed, rate), 0.0, 0
    durations: list[float] = []
    optimizer = optimizer_of(learner, method, rate)
    batches = task.batches(seed)
    while (spent := budget.spent(len(durations), elapsed)) < 1:
        batch, watch = next(batches), _Watch()
        if spent >= looks / POINTS:
            run.curve.append((len(durations), elapsed, _evaluate(learner, task)))
            looks = math.floor(spent * POINTS + 1e-9) + 1
            if angles:
                watch = _Watch(lambda random: run.angles.append(_angles(model, twin, task.loss, batch, random)))  # noqa: B023
        begin = time.perf_counter()
        step(learner, method, optimizer, rate * _schedule(spent), batch, watch)
        durations.append(time.perf_counter() - begin - watch.seconds)
        elapsed += durations[-1]
        progress(min(budget.spent(len(durations), elapsed), 1.0))
    run.curve.append((len(durations), elapsed, _evaluate(learner, task)))
    run.step_seconds = statistics.median(durations)
    return run


class _Watch:
    """Looks at gradients in the middle of a step, and says how long that took."""

    def __init__(self, look: Callable[[Tensor], None] | None = None) -> None:
        self.look, self.seconds = look, 0.0
        self.random = torch.get_rng_state() if look is not None else None

    def __call__(self) -> None:
        if self.look is not None and self.random is not None:
            begin = time.perf_counter()
            self.look(self.random)
            self.seconds = time.perf_counter() - begin


def _schedule(spent: float) -> float:
    """The rate's share: a line up, then half a cosine down to zero."""
    if spent < WARM_UP:
        return 0.1 + 0.9 * spent / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (spent - WARM_UP) / (1 - WARM_UP))


def _evaluate(learner: Learner, task: Task) -> float:
    """The mean score on the whole held-out set, in eval mode."""
    learner.model.eval()
    random = torch.get_rng_state()
    scores = [task.score(learner.outputs(inputs), labels) for inputs, labels in task.test.parts(1024)]
    torch.set_rng_state(random)
    learner.model.train()
    count = sum(number for _, number in scores)
    return sum(total for total, _ in scores) / count if count else math.nan


def _angles(model: nn.Module, twin: nn.Module, loss: Loss, batch: Batch, random: Tensor) -> dict[str, float | None]:
    """Of each matrix: the angle between what the method gave it and its true gradient, with the same draws."""
    twin.load_state_dict(model.state_dict())
    twin.zero_grad(set_to_none=True)
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    Learner(twin, loss, batch[0]).gradients(*batch)
    torch.set_rng_state(after)
    true = dict(twin.named_parameters())
    pairs = [(name, p.grad, true[name].grad) for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad]
    return {name: angle(a, b) for name, a, b in pairs}


def angle(a: Tensor | None, b: Tensor | None) -> float | None:
    """Degrees between two tensors; None where one of them is zero, absent or not finite."""
    if a is None or b is None:
        return None
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    size = float(a.norm() * b.norm())
    if not (math.isfinite(size) and size > 0):
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, float(a @ b) / size))))
