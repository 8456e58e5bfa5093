"""Feedback training and relevance propagation for any PyTorch model, one rule per primitive operation."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import onnx
from .errors import LfpGraphError

if find_spec("torch") is not None:  # where there is no torch, `lfpgraph.onnx.OrtTrainer` still runs exported steps
    from . import centred, hebbian, lrp, metrics, pictures, policies, rewards, rivals, spiking
    from .attribution import Attribution, attribute
    from .check import CheckReport, check
    from .composites import Composite, Ruleset, composite_names, get_composite, register_composite
    from .explained import Contrast
    from .feedback import feedback
    from .importance import importance, prune
    from .interop import from_reward_function
    from .quantise import bits_by_importance, quantise
    from .registry import rule
    from .reports.conservation import Conservation, conservation
    from .reports.coverage import CoverageReport, coverage
    from .reports.flow import relevance_flow
    from .rewards import reward_loss
    from .trace import OpGraph, trace
    from .wrap import is_wrapped, unwrap, wrap

if TYPE_CHECKING:
    from .training import Trainer

__all__ = [
    "Attribution",
    "CheckReport",
    "Conservation",
    "Contrast",
    "attribute",
    "bits_by_importance",
    "check",
    "Composite",
    "CoverageReport",
    "LfpGraphError",
    "OpGraph",
    "Ruleset",
    "Trainer",
    "centred",
    "composite_names",
    "conservation",
    "coverage",
    "feedback",
    "from_reward_function",
    "get_composite",
    "hebbian",
    "importance",
    "is_wrapped",
    "lrp",
    "metrics",
    "onnx",
    "pictures",
    "policies",
    "prune",
    "quantise",
    "register_composite",
    "relevance_flow",
    "reward_loss",
    "rewards",
    "rivals",
    "rule",
    "spiking",
    "trace",
    "unwrap",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """`Trainer` is imported when it is asked for."""
    here = find_spec("torch") is not None
    if name == "Trainer" and here:
        from .training import Trainer

        return Trainer
    why = (
        ""
        if here or name not in __all__
        else ": it needs torch, which is not installed; lfpgraph.onnx.OrtTrainer does not"
    )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")
