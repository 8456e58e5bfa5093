"""`lfpgraph.Trainer` and its parts: settings, data and its position, checkpoints, logs, what stops a run."""

from .objective import Objective
from .rates import suggest_lr
from .settings import Evaluation, Feedback, Loading, Running, Saving, Update
from .trainer import Outcome, Trainer

__all__ = [
    "Evaluation",
    "Feedback",
    "Loading",
    "Objective",
    "Outcome",
    "Running",
    "Saving",
    "Trainer",
    "Update",
    "suggest_lr",
]
