"""Feedback training and relevance propagation for any PyTorch model, one rule per primitive operation."""

import sys as _sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import onnx
from .errors import LfpGraphError

if find_spec("torch") is not None:  # where there is no torch, `lfpgraph.onnx.OrtTrainer` still runs exported steps
    from . import rewards
    from .audits import faithfulness as metrics
    from .audits.checks import CheckReport, check
    from .audits.circuits import Patching, patching
    from .audits.conserved import Conservation, conservation
    from .audits.flow import relevance_flow
    from .audits.tuning import Tuned, tune
    from .comparison import compare
    from .composites import centred, hebbian, lrp, rivals, spiking
    from .composites.composite import (
        Composite,
        Ruleset,
        composite_names,
        get_composite,
        register_composite,
    )
    from .composites.interop import from_reward_function
    from .engine.direct import feedback
    from .explain import pictures
    from .explain.attribution import Attribution, attribute
    from .explain.generation import Generation, explain_generation
    from .explain.importances import bits_by_importance, importance, prune, quantise
    from .explain.targets import Box, Contrast, Segment, Targets
    from .graph.graph import OpGraph
    from .registry import rule
    from .reports.covered import CoverageReport, coverage
    from .rewards import reward_loss
    from .tracing.tracer import trace
    from .training import policies
    from .wrapping.wrapper import explain_wrap, is_wrapped, unwrap, wrap

    # Modules that users import from the package itself, wherever their files lie.
    for _module in (centred, hebbian, lrp, metrics, pictures, policies, rivals, spiking):
        _sys.modules.setdefault(
            f"{__name__}.{'metrics' if _module is metrics else _module.__name__.rpartition('.')[2]}", _module
        )

if TYPE_CHECKING:
    from .training import Trainer, suggest_lr

__all__ = [
    "Attribution",
    "Box",
    "CheckReport",
    "Conservation",
    "Contrast",
    "attribute",
    "bits_by_importance",
    "check",
    "compare",
    "Composite",
    "CoverageReport",
    "Generation",
    "LfpGraphError",
    "OpGraph",
    "Patching",
    "Ruleset",
    "Segment",
    "Targets",
    "Trainer",
    "Tuned",
    "centred",
    "composite_names",
    "conservation",
    "coverage",
    "explain_generation",
    "explain_wrap",
    "feedback",
    "from_reward_function",
    "get_composite",
    "hebbian",
    "importance",
    "is_wrapped",
    "lrp",
    "metrics",
    "onnx",
    "patching",
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
    "suggest_lr",
    "trace",
    "tune",
    "unwrap",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """`Trainer` and `suggest_lr` are imported when they are asked for."""
    here = find_spec("torch") is not None
    if name in ("Trainer", "suggest_lr") and here:
        from . import training

        return getattr(training, name)
    why = (
        ""
        if here or name not in __all__
        else ": it needs torch, which is not installed; lfpgraph.onnx.OrtTrainer does not"
    )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")
