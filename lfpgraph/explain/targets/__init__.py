"""What is explained: one target or several, of a class, a place, a contrast, weights or a function of the output."""

from .several import Targets, as_they_stand, has_function
from .vision import Box, Segment
from .weights import Contrast, refuse_nan, target_signals, value_of, weights_of

__all__ = [
    "Box",
    "Contrast",
    "Segment",
    "Targets",
    "as_they_stand",
    "has_function",
    "refuse_nan",
    "target_signals",
    "value_of",
    "weights_of",
]
