"""Small language models learn the next character of Python's own standard library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...demo.data import Arrays
from ..common.data import library_text
from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned

__all__ = ["RATES", "characters", "gpt2", "llama", "loss_of", "run"]

RATES = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
DEEP_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
BUDGETS = (2, 4, 8)  # epochs, of the small GPT-2; the others have the middle one
_CONTEXT, _WIDTH = 48, 96


def run(settings: Settings) -> Report:
    """Width 96, context of 48 characters; loss in nats a character on a part never seen, with three budgets of epochs."""
    train, test, size = characters()
    ways = [Way("LFP", "lfp", loss_of), Way("backprop", None, loss_of)]
    builds: dict[str, tuple[Callable[[], nn.Module], tuple[float, ...]]] = {
        "GPT-2": (partial(gpt2, size), RATES),
        "GPT-2, 6 layers": (partial(gpt2, size, 6), DEEP_RATES),
        "Llama": (partial(llama, size), RATES),
    }

    def one(name: str, epochs: int) -> tuple[list[Case], list[str]]:
        build, rates = builds[name]
        start = seeded(build)
        return tuned(
            start(0), ways, rates, train, test, settings, choosing=2, epochs=epochs, name=f"{name}, {epochs} epochs", start=start,
            score=lambda o, y: loss_of(o, y).item(), lower_is_better=True,
        )  # fmt: skip

    pairs = [(name, epochs) for epochs in BUDGETS for name in builds if name == "GPT-2" or epochs == BUDGETS[1]]
    found = settings.runs.together([partial(one, *pair) for pair in pairs])
    counts = torch.bincount(train[1].flatten(), minlength=size).float()
    share = counts / counts.sum()
    entropy = -(share[counts > 0] * share[counts > 0].log()).sum().item()
    notes = [note for _, chosen in found for note in chosen]
    notes.append(f"single characters alone: {entropy:.3f} nats")
    cases = [case for own, _ in found for case in own]
    return Report("language", "nats per character", cases, draw_curves, (18, 6), notes)


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


def gpt2(size: int, layers: int = 2) -> nn.Module:
    """GPT-2 from its configuration, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size,
            n_positions=_CONTEXT,
            n_embd=_WIDTH,
            n_layer=layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama(size: int, layers: int = 2) -> nn.Module:
    """Llama from its configuration: rotary positions, norms by the root mean square, gates, two heads of keys for four."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            max_position_embeddings=_CONTEXT,
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
