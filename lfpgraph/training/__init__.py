"""`lfpgraph.Trainer` and its parts: data and its position, checkpoints, logs, what stops a run."""

from .trainer import Outcome, Trainer

__all__ = ["Outcome", "Trainer"]
