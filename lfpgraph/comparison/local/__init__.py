"""Local learning: a model cut into blocks by its own graph, each with a loss of its own."""

from .blocks import Blocks
from .countercurrent import CounterCurrent
from .goodness import ForwardForward
from .learning import AugLocal, ForwardGNN, LocalLosses, MomentumAuxiliary, TargetProjection

__all__ = [
    "AugLocal",
    "Blocks",
    "CounterCurrent",
    "ForwardForward",
    "ForwardGNN",
    "LocalLosses",
    "MomentumAuxiliary",
    "TargetProjection",
]
