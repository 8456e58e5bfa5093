"""A short range test: which learning rate a model bears, under feedback or under backprop."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from ..errors import NonFiniteError, TrainingError
from ..randomness import random_state, set_random_state
from .trainer import Trainer

__all__ = ["suggest_lr"]

_MEMORY = 0.9  # of the mean over steps before
_SHARE = 0.1  # of the rate at which the loss was least; see docs/experiments.md, suggested


def suggest_lr(
    model: nn.Module, train_data: Any, *, lowest: float = 1e-5, highest: float = 1.0, steps: int = 100, **settings: Any
) -> float:
    """The greatest rate to give a schedule that warms up and decays ("onecycle"), for this model, data and composite.

    A copy of the model trains for some steps while the rate grows from `lowest` to `highest`. The loss falls, then rises;
    suggested is a tenth of the rate at which its running mean was least, rounded to two digits. The model and the random
    generators stay as they were.

    Args:
        model, train_data: as for `Trainer`.
        settings: of `Trainer`, such as `loss=`, `composite=`, `optimizer=` and `batch_size=`. composite=None tests backprop.

    Raises:
        TrainingError: rates or steps that make no range, a reward (it need not rise while a model learns), or no step
            that made the loss less. As for `Trainer`.
    """
    if not 0 < lowest < highest or steps < 10:
        raise TrainingError(f"lowest={lowest!r}, highest={highest!r}, steps={steps!r} make no range of rates")
    if settings.get("reward") is not None:
        raise TrainingError("suggest_lr goes by a loss; a reward need not rise while a model learns")
    growth = (highest / lowest) ** (1 / (steps - 1))
    own = {
        "lr": lowest, "scheduler": lambda optimizer, steps: ExponentialLR(optimizer, growth), "max_steps": steps,
        "epochs": steps, "progress": False, "folder": None,
    }  # fmt: skip
    trainer = Trainer(copy.deepcopy(model), train_data, **{**settings, **own})
    mean, best, found, first = 0.0, math.inf, None, None
    state = random_state()
    try:
        for record in trainer.iterate():
            mean += (1 - _MEMORY) * (record["loss"] - mean)
            smooth = mean / (1 - _MEMORY ** record["step"])
            first = smooth if first is None else first
            if smooth < best:
                best, found = smooth, record["lr"]
            if smooth > 2 * first + abs(best):
                break
    except NonFiniteError:
        pass  # the rate before was too high already
    finally:
        set_random_state(state)
    if found is None or found == lowest:
        raise TrainingError(f"the loss never fell between the rates {lowest:g} and {highest:g}")
    return float(f"{_SHARE * found:.1e}")
