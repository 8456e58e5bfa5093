"""One rule per primitive operation. Importing this package fills the registry (`lfpgraph.registry`)."""

from . import activations, dot_product, indexing, linear, loops, norms, reductions, statistics, sums, views  # noqa: F401
