"""Experiments on what is rewarded, and by whom."""
