"""Elementwise formulas as loops in C, compiled when first used."""
