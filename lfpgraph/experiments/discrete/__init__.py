"""Experiments on what has no useful derivative: steps, spikes, few bits, choices."""
