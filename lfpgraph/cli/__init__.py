"""The command line: `lfpgraph demo | train | coverage | graph | zoo | reproduce | explain | export`."""

from .app import main

__all__ = ["main"]
