"""Is a traced program still the model? What one run read, looked at again before each later call (`observation`)."""

from .items import PLAIN
from .observation import Guard, Observation

__all__ = ["PLAIN", "Guard", "Observation"]
