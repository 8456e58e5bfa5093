"""Sample arguments for every operation in the registry, from which the suite generates its tests."""

from .base import Sample
from .table import samples

__all__ = ["Sample", "samples"]
