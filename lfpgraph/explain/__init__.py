"""Relevance instead of feedback: attribution, its targets, paths, importance and pictures."""
