"""Slopes of secants, by which `lfp` goes back through activations and steps: formulas as operations, and the same in C."""
