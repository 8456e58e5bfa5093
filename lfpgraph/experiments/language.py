"""A small GPT-2 learns the next character of Python's own standard library."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays
from .common.data import library_text
from .common.drawing import draw_curves
from .common.harness import Report, Settings, Way
from .common.models import seeded
from .common.rates import tuned

__all__ = ["RATES", "characters", "gpt2", "loss_of", "run"]

RATES = (2e-3, 5e-3, 1e-2, 2e-2)
_CONTEXT = 48


def run(settings: Settings) -> Report:
    """Two layers of width 96, context of 48 characters; loss in nats a character on a part never seen."""
    train, test, size = characters()
    ways = [Way("LFP", "lfp", loss_of), Way("backprop", None, loss_of)]
    start = seeded(lambda: gpt2(size))
    cases, notes = tuned(
        start(0), ways, RATES, train, test, settings, epochs=4, name="GPT-2", start=start,
        score=lambda o, y: loss_of(o, y).item(), lower_is_better=True,
    )  # fmt: skip
    counts = torch.bincount(train[1].flatten(), minlength=size).float()
    share = counts / counts.sum()
    entropy = -(share[counts > 0] * share[counts > 0].log()).sum().item()
    notes.append(f"single characters alone: {entropy:.3f} nats")
    return Report("language", "nats per character", cases, draw_curves, notes=notes)


def characters() -> tuple[Arrays, Arrays, int]:
    """Training and held-out windows, each as characters and the ones that follow, and how many characters there are."""
    text, size = library_text(150_000)
    windows = text[: len(text) // (_CONTEXT + 1) * (_CONTEXT + 1)].view(-1, _CONTEXT + 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    test, train = windows[order[:256]], windows[order[256:]]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]), size


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats per character."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def gpt2(size: int) -> nn.Module:
    """GPT-2 from its configuration, without dropout."""
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
