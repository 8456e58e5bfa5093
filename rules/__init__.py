"""One rule per primitive operation. Importing this package fills the registry (`lfpgraph.registry`)."""

from . import activations, dot_product, indexing, linear, norms, recurrent, reductions, statistics, sums, views  # noqa: F401
