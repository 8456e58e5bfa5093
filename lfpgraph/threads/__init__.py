"""What a trace means for other threads: who may trace when, and what torch says meanwhile."""
