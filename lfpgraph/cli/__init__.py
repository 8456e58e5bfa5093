"""The command line: `lfpgraph demo | coverage | train | explain | graph | export | check | zoo`."""

from .app import main

__all__ = ["main"]
