"""Elementwise formulas in C, as loops over steps and as single passes over memory, compiled when first used."""
