"""Feedback training for any PyTorch model."""
