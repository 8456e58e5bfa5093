"""Loss and metrics over a whole data set; random generators and the model's mode stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..modes import eval_mode
from ..optional import need
from ..randomness import keep_random_state
from ..rewards.loss import outputs_of
from .data import Batches, rows_of
from .objective import Objective

__all__ = ["evaluate", "accuracy", "mean_absolute_error", "r2", "named_metrics", "Metric", "METRICS"]


def evaluate(
    accelerator: Any, model: nn.Module, batches: Batches, objective: Objective, metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """The mean loss by rows as "eval_loss", and each metric of all outputs and labels as "eval_NAME".

    Raises:
        TrainingError: metrics are asked for, but a step of the user's own shows no outputs.
    """
    utils = need("accelerate.utils", "trainer", "lfpgraph.Trainer")
    if metrics and objective.step is not None:
        raise TrainingError("metrics need outputs and labels, which step= does not show; give loss= or reward= instead")
    total = torch.zeros(2, dtype=torch.float64, device="cpu")
    kept: list[tuple[Tensor, Tensor]] = []
    with eval_mode(model), keep_random_state(model, python=True), torch.no_grad(), accelerator.autocast():
        for batch, count in batches.start(0)[0]:
            if count == 0:
                continue
            loss, outputs, labels = _loss(objective, model, utils.send_to_device(batch, accelerator.device))
            total += torch.tensor([float(loss) * count, count], dtype=torch.float64, device="cpu")
            if metrics:
                kept.append((outputs.float().cpu(), labels.cpu()))
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device), reduction="sum").cpu()
        kept = utils.gather_object(kept)
    result = {"eval_loss": float(total[0] / total[1])}
    if metrics:
        outputs, labels = (torch.cat(parts) for parts in zip(*kept))
        result |= {f"eval_{name}": float(metric(outputs, labels)) for name, metric in metrics.items()}
    return result


def _loss(objective: Objective, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """The loss of a batch; of a reward, minus its mean per row."""
    if objective.reward is None:
        return objective(model, batch)
    args, kwargs, labels = objective.parts(batch)
    outputs = outputs_of(model(*args, **kwargs))
    return -objective.reward(outputs, labels).sum() / max(rows_of(batch), 1), outputs, labels


Metric = Callable[[Tensor, Tensor], Any]


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest output [n, ..., c] is at the label [n, ...]; for one output, whose sign is right."""
    if outputs.dim() == labels.dim() and outputs.shape[-1] == 1:
        return ((outputs > 0) == (labels > 0.5)).float().mean().item()
    counted = labels >= 0  # -100 marks what the loss leaves out
    return (outputs.argmax(-1) == labels)[counted].float().mean().item()


def mean_absolute_error(outputs: Tensor, labels: Tensor) -> float:
    """Mean distance from the labels, in their units."""
    return (outputs.reshape(labels.shape) - labels).abs().float().mean().item()


def r2(outputs: Tensor, labels: Tensor) -> float:
    """Share of the labels' variance that the outputs explain."""
    labels = labels.float()
    error = (outputs.float().reshape(labels.shape) - labels).square().sum()
    return 1 - (error / (labels - labels.mean(0)).square().sum()).item()


METRICS: dict[str, Metric] = {"accuracy": accuracy, "mean_absolute_error": mean_absolute_error, "r2": r2}


def named_metrics(given: Sequence[str] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name: from a list of known names, or of your own.

    Raises:
        TrainingError: an unknown name; the message lists the known ones.
    """
    if isinstance(given, Mapping):
        return dict(given)
    unknown = [name for name in given if name not in METRICS]
    if unknown:
        raise TrainingError(f"no metric {unknown[0]!r}; known: {', '.join(METRICS)}; or give {{name: function}}")
    return {name: METRICS[name] for name in given}
