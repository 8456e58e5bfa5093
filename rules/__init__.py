"""One rule per primitive operation. Importing this package fills the registry (`lfpgraph.registry`)."""

from . import (
    activations,
    attention,
    copies,
    indexing,
    linear,
    lrp,
    lrp_input,
    lrp_layers,
    lrp_transformer,
    norms,
    reductions,
    statistics,
    sums,
    views,
)

__all__ = [
    "activations",
    "attention",
    "copies",
    "indexing",
    "linear",
    "lrp",
    "lrp_input",
    "lrp_layers",
    "lrp_transformer",
    "norms",
    "reductions",
    "statistics",
    "sums",
    "views",
]
