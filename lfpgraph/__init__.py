"""Feedback training and relevance propagation for any PyTorch model, one rule per primitive operation."""

from .composites import Composite, Ruleset, composite_names, get_composite, register_composite
from .errors import LfpGraphError
from .registry import rule
from .trace import OpGraph, trace
from .wrap import is_wrapped, unwrap, wrap

__all__ = [
    "Composite",
    "LfpGraphError",
    "OpGraph",
    "Ruleset",
    "composite_names",
    "get_composite",
    "is_wrapped",
    "register_composite",
    "rule",
    "trace",
    "unwrap",
    "wrap",
]
