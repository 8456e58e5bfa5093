"""Feedback training and relevance propagation for any PyTorch model, one rule per primitive operation."""

from . import lrp, metrics, rewards
from .attribution import Attribution, attribute
from .check import CheckReport, check
from .composites import Composite, Ruleset, composite_names, get_composite, register_composite
from .errors import LfpGraphError
from .explained import Contrast
from .feedback import feedback
from .importance import importance, prune
from .interop import from_reward_function
from .registry import rule
from .reports.conservation import Conservation, conservation
from .reports.coverage import CoverageReport, coverage
from .rewards import reward_loss
from .trace import OpGraph, trace
from .wrap import is_wrapped, unwrap, wrap

__all__ = [
    "Attribution",
    "CheckReport",
    "Conservation",
    "Contrast",
    "attribute",
    "check",
    "Composite",
    "CoverageReport",
    "LfpGraphError",
    "OpGraph",
    "Ruleset",
    "composite_names",
    "conservation",
    "coverage",
    "feedback",
    "from_reward_function",
    "get_composite",
    "importance",
    "is_wrapped",
    "lrp",
    "metrics",
    "prune",
    "register_composite",
    "reward_loss",
    "rewards",
    "rule",
    "trace",
    "unwrap",
    "wrap",
]
