"""The papers' experiments on data that ships: `lfpgraph reproduce NAME`. Each is a small file on one harness."""

from .common.catalog import EXPERIMENTS, Experiment, reproduce
from .common.harness import Report, Settings
from .common.runs import Runs

__all__ = ["EXPERIMENTS", "Experiment", "Report", "Runs", "Settings", "reproduce"]
