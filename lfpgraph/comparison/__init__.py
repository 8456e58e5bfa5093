"""Several ways of training side by side on one model: same start, same batches, same budget, each at its own best rate."""

from .comparing import compare
from .methods import METHODS, Method, method_named
from .perturbation import zeroth_order
from .results import Comparison, WayResult

__all__ = ["METHODS", "Comparison", "Method", "WayResult", "compare", "method_named", "zeroth_order"]
