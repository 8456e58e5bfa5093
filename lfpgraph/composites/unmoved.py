"""Which parameters can never move under a composite, or not as matrices do, and what it says of nothing; said in the log."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..graph.graph import ACTIVE, WEIGHT, OpGraph
from ..numerics import is_zero
from .composite import Composite

__all__ = ["log_cut", "log_idle", "log_plain", "log_stopped", "log_unmoved"]

log = logging.getLogger("lfpgraph")


def log_unmoved(composite: Composite, parameters: Mapping[str, Tensor], awake: Iterable[str]) -> None:
    """Say in the log which trainable parameters are wholly zero and receive no feedback.

    Args:
        awake: names of those that receive some all the same.
    """
    trainable = {name: p.detach() for name, p in parameters.items() if p.requires_grad and not is_lazy(p) and p.numel()}
    moving = set(awake)
    asleep = {name: p for name, p in trainable.items() if name not in moving and not p.is_meta}
    stays = {name: p for name, p in asleep.items() if composite.parameter_ruleset(name).leaves_zero(p)}
    unmoved = [name for name, p in stays.items() if is_zero(p)]
    if unmoved:
        shown = ", ".join(unmoved[:4]) + (", ..." if len(unmoved) > 4 else "")
        usual = all(trainable[name].dim() < 2 for name in unmoved) and len(unmoved) < len(trainable)
        log.log(
            logging.INFO if usual else logging.WARNING,
            "%d of %d trainable parameters are wholly zero and receive no feedback, which is abs(w) * s: %s. To let them "
            'learn, use composite.override(PATTERN, scale="signal") or override(PATTERN, floor=1e-3).',
            len(unmoved), len(trainable), shown,
        )  # fmt: skip


def log_idle(composite: Composite, model: nn.Module, level: int = logging.WARNING) -> None:
    """Say in the log which patterns of a composite match no module and no parameter of the model.

    Args:
        level: INFO for a wrapped model, which may get modules later (adapters, say).
    """
    patterns = [] if composite.prefix else [place for place, _ in composite.overrides if isinstance(place, str)]
    if not patterns:
        return
    names = [name for name, _ in (*model.named_modules(remove_duplicate=False), *model.named_parameters())]
    idle = [p for p in patterns if not any(fnmatch.fnmatchcase(name, p) for name in names)]
    if idle:
        log.log(
            level, "composite %s: no module and no parameter of %s has a name like %s, so these rules are used nowhere; "
            "model.named_modules() has the names", composite.name, type(model).__name__, ", ".join(map(repr, idle[:4])),
        )  # fmt: skip


def log_cut(names: Sequence[str]) -> None:
    """Say in the log which parameters hold matrices and receive what vectors do."""
    if names:
        log.warning(
            "%d parameters are vectors that the model cuts into matrices (%s), so they take the plain signal of vectors, "
            "and not abs(w) times it. Keep each matrix in a parameter of its own; to shard them, use FSDP2 (fully_shard).",
            len(names), ", ".join(repr(name) for name in names[:3]),
        )  # fmt: skip


def log_plain(model: str, graphs: Iterable[OpGraph]) -> None:
    """Say in the log if nothing that a model computes carries reward, since nothing that it is given comes into it."""
    kinds = {graph.info[node].kind for graph in graphs for node in graph.operations()}
    if WEIGHT in kinds and ACTIVE not in kinds:
        log.warning(
            "%s computes nothing of the tensors that it is given, so its parameters receive the plain gradient and no feedback. "
            "What it makes of text or numbers inside carries reward if the call is given no other floating-point tensor, or "
            "the tensors themselves.", model,
        )  # fmt: skip


def log_stopped(stopped: Mapping[str, str]) -> None:
    """Say in the log which parameters no reward reaches, and where it stops on the way to them."""
    if stopped:
        names = list(stopped)
        log.warning(
            "%d parameters that train receive no reward (%s): whole numbers are made of what they give, or quantised "
            "layers take it in unseen by autograd, as at %s. Backprop would give them nothing either. Quantise weights alone, or "
            "freeze these parameters.",
            len(names), ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""), stopped[names[0]],
        )  # fmt: skip
