"""One rule per primitive operation. Importing this package fills the registry (`lfpgraph.registry`)."""

from . import (
    activations,
    dot_product,
    indexing,
    linear,
    norms,
    reductions,
    statistics,
    sums,
    views,
)

__all__ = [
    "activations",
    "dot_product",
    "indexing",
    "linear",
    "norms",
    "reductions",
    "statistics",
    "sums",
    "views",
]
