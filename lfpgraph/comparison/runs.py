"""One run of one way of training, and what is measured meanwhile: quality, seconds, the angle to the gradient."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .methods import Loss, Method

__all__ = ["Budget", "Run", "Task", "angle", "backward", "output_of", "train"]

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
    """What is learnt. `score` is of outputs and labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Loss
    score: Callable[[Tensor, Tensor], float]
    batch_size: int

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, the same for every way."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for rows in torch.randperm(len(self.train[0]), generator=generator).split(self.batch_size):
                yield self.train[0][rows], self.train[1][rows]


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


def output_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output, or its logits."""
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def backward(model: nn.Module, method: Method, loss: Loss, x: Tensor, labels: Tensor) -> None:
    """Set the gradients of a model that is wrapped as the method wants it."""
    if method.gradients is not None:
        method.gradients(loss)(model, x, labels)
        return
    objective = loss(output_of(model, x), labels)
    if objective.requires_grad:  # a network that ends in a step has nothing to differentiate
        objective.backward()


def train(
    model: nn.Module, twin: nn.Module, method: Method, rate: float, task: Task, budget: Budget, seed: int,
    progress: Callable[[float], None], angles: bool,
) -> Run:  # fmt: skip
    """Train a model from where it is.

    Args:
        twin: the same model unwrapped; it lends itself to the true gradient.
        progress: is told the share of the budget that is spent.
        angles: measure them.
    """
    torch.manual_seed(seed)
    run, elapsed, looks = Run(seed, rate), 0.0, 0
    durations: list[float] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, method.optimizer)(parameters, lr=rate)
    batches = task.batches(seed)
    model.train()
    while (spent := budget.spent(len(durations), elapsed)) < 1:
        x, labels = next(batches)
        look = spent >= looks / POINTS
        if look:
            run.curve.append((len(durations), elapsed, _evaluate(model, task)))
            looks = math.floor(spent * POINTS + 1e-9) + 1
        random = torch.get_rng_state() if look and angles else None
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        backward(model, method, task.loss, x, labels)
        pause = time.perf_counter()
        if random is not None:
            run.angles.append(_angles(model, twin, task.loss, x, labels, random))
        resumed = time.perf_counter()
        if method.clip is not None:
            nn.utils.clip_grad_norm_(parameters, method.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(spent)
        optimizer.step()
        durations.append(time.perf_counter() - begin - (resumed - pause))
        elapsed += durations[-1]
        progress(min(budget.spent(len(durations), elapsed), 1.0))
    run.curve.append((len(durations), elapsed, _evaluate(model, task)))
    run.step_seconds = statistics.median(durations)
    return run


def _schedule(spent: float) -> float:
    """The rate's share: a line up, then half a cosine down to zero."""
    if spent < WARM_UP:
        return 0.1 + 0.9 * spent / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (spent - WARM_UP) / (1 - WARM_UP))


@torch.no_grad()
def _evaluate(model: nn.Module, task: Task) -> float:
    """The score on the whole held-out set, in eval mode."""
    model.eval()
    parts = [output_of(model, x) for x in task.test[0].split(1024)]
    model.train()
    return task.score(torch.cat(parts), task.test[1])


def _angles(
    model: nn.Module, twin: nn.Module, loss: Loss, x: Tensor, labels: Tensor, random: Tensor
) -> dict[str, float | None]:
    """Of each matrix: the angle between what the method gave it and its true gradient, with the same draws."""
    twin.load_state_dict(model.state_dict())
    twin.zero_grad(set_to_none=True)
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    backward(twin, Method("gradient", None), loss, x, labels)
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
