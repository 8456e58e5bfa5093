"""One rule per primitive operation. Importing this package fills the registry (`lfpgraph.registry`)."""

from . import activations, attention, linear, norms, reductions, sums, views

__all__ = ["activations", "attention", "linear", "norms", "reductions", "sums", "views"]
