"""Is a traced program still the model? What one run read, looked at again before each later call (`observation`)."""

from .observation import Guard, Observation, is_observed_elsewhere
from .trial import try_out

__all__ = ["Guard", "Observation", "is_observed_elsewhere", "try_out"]
