"""Which rules a part of the model gets: composites by name, and the composites of the papers."""

from . import centred, hebbian, interop, lrp, rivals, spiking
from .composite import (
    Composite,
    Ruleset,
    composite_names,
    get_composite,
    register_composite,
)
from .table import COMPOSITES

__all__ = [
    "COMPOSITES",
    "Composite",
    "Ruleset",
    "centred",
    "composite_names",
    "get_composite",
    "hebbian",
    "interop",
    "lrp",
    "register_composite",
    "rivals",
    "spiking",
]
