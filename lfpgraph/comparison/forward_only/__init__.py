"""Ways of training without a backward pass through the whole model."""

from .noprop import NoProp
from .perturbation import EvolutionStrategy, MeZO, evolution, zeroth_order

__all__ = ["EvolutionStrategy", "MeZO", "NoProp", "evolution", "zeroth_order"]
