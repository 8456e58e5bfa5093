"""Several ways of training side by side on one model: same start, same batches, same budget, each at its own best rate."""

from .comparing import compare
from .forward_only import zeroth_order
from .learners import Learner
from .methods import METHODS, Method, method_named
from .results import Comparison, WayResult

__all__ = ["METHODS", "Comparison", "Learner", "Method", "WayResult", "compare", "method_named", "zeroth_order"]
