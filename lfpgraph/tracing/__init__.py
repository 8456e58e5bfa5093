"""From a model and an example call to a graph: torch.export, the fallback on real values, and the check of the result."""
