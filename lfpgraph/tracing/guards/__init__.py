"""Is a traced program still the model? What one run read, looked at again before each later call (`observation`)."""

from .observation import Guard, Observation
from .trial import try_out

__all__ = ["Guard", "Observation", "try_out"]
