"""The rules of layer-wise relevance propagation for products with weights, and those of AttnLRP for transformers."""

from . import transformer
from .input import Box, Flat, WSquare
from .products import AlphaBeta, Gamma, ZPlus, epsilon_rule

__all__ = ["AlphaBeta", "Box", "Flat", "Gamma", "WSquare", "ZPlus", "epsilon_rule", "transformer"]
