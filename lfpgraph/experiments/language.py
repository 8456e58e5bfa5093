"""A small GPT-2 learns the next character of Python's own standard library."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .common.data import library_text
from .common.drawing import draw_curves
from .common.harness import Report, Settings, Way, fit
from .common.models import seeded

__all__ = ["run"]

_CONTEXT = 48


def run(settings: Settings) -> Report:
    """Two layers of width 96, context of 48 characters; loss in nats a character on a part never seen."""
    text, size = library_text(150_000)
    windows = text[: len(text) // (_CONTEXT + 1) * (_CONTEXT + 1)].view(-1, _CONTEXT + 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    test, train = windows[order[:256]], windows[order[256:]]
    ways = [Way("LFP", "lfp-epsilon", _loss, lr=3e-3), Way("backprop", None, _loss, lr=3e-3)]
    start = seeded(lambda: _model(size))
    cases = fit(
        start(0), ways, (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]), settings, epochs=4, name="GPT-2",
        batch_size=64, score=lambda o, y: _loss(o, y).item(), start=start,
    )  # fmt: skip
    counts = torch.bincount(train.flatten(), minlength=size).float()
    share = counts / counts.sum()
    entropy = -(share[counts > 0] * share[counts > 0].log()).sum().item()
    return Report(
        "language", "nats per character", cases, draw_curves, notes=[f"single characters alone: {entropy:.3f} nats"]
    )


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def _model(size: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size,
            n_positions=_CONTEXT,
            n_embd=96,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
