"""Writes in place: what a traced graph, which writes nothing, has in their place."""
