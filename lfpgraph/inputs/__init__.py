"""Example inputs, worked out from a model."""

from .examples import example_inputs
from .maker import TensorMaker

__all__ = ["TensorMaker", "example_inputs"]
