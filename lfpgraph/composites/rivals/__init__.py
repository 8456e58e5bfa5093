"""Other ways of training, as composites: what stands at a threshold, and what brings signals back through layers."""

from .family import rival, rival_composites
from .ways_back import fixed_random

__all__ = ["fixed_random", "rival", "rival_composites"]
