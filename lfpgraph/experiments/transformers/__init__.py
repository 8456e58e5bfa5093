"""Experiments on models of transformers."""
