"""Which parameters can never move under a composite, or not as matrices do, said in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn.parameter import is_lazy

from ..numerics import is_zero
from .composite import Composite

__all__ = ["log_cut", "log_stopped", "log_unmoved"]

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


def log_cut(names: Sequence[str]) -> None:
    """Say in the log which parameters hold matrices and receive what vectors do."""
    if names:
        log.warning(
            "%d parameters are vectors that the model cuts into matrices (%s), so they take the plain signal of vectors, "
            "and not abs(w) times it. Keep each matrix in a parameter of its own; to shard them, use FSDP2 (fully_shard).",
            len(names), ", ".join(repr(name) for name in names[:3]),
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
