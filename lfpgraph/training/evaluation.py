"""Loss and metrics over a whole data set, without a trace in the random generators or in the model's mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .data import Batches, rows_of
from .extras import need
from .metrics import Metric
from .objective import Objective, outputs_of
from .state import random_state, set_random_state

__all__ = ["evaluate"]


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
    training, before = model.training, random_state()
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad(), accelerator.autocast():
            for batch, count in batches.start(0)[0]:
                if count == 0:
                    continue
                loss, outputs, labels = _loss(objective, model, utils.send_to_device(batch, accelerator.device))
                total += torch.tensor([float(loss) * count, count], dtype=torch.float64)
                if metrics:
                    kept.append((outputs.float().cpu(), labels.cpu()))
    finally:
        model.train(training)
        set_random_state(before)
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
