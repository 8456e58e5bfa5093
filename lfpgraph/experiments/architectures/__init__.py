"""Architectures that learning rules are asked to train: series, fields, captions, hybrids."""
