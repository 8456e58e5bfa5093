"""A hybrid of gated DeltaNet and attention, after Qwen3-Next: the next character of Python's own standard library."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned
from .language import characters, loss_of

__all__ = ["hybrid", "run"]

RATES = (3e-3, 1e-2, 3e-2)
WINDOWS = 768


def hybrid(size: int, width: int = 32) -> nn.Module:
    """One layer of gated DeltaNet and one of gated attention, each with an MLP and no experts."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2}
    delta: dict[str, Any] = {f"linear_{what}_head_dim": width // 2 for what in ("key", "value")}
    delta |= {f"linear_num_{what}_heads": 2 for what in ("key", "value")}
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, max_position_embeddings=64,
            layer_types=["linear_attention", "full_attention"], mlp_only_layers=[0, 1], num_experts=0, use_cache=False,
            **heads, **delta,
        )
    )  # fmt: skip


def run(settings: Settings) -> Report:
    """Nats per character on windows never seen, after four epochs of 768 windows of 48 characters."""
    (x, y), test, size = characters()
    ways = [Way("LFP", "lfp", loss_of), Way("backprop", None, loss_of)]
    start = seeded(partial(hybrid, size))
    cases, notes = tuned(
        start(0), ways, RATES, (x[:WINDOWS], y[:WINDOWS]), test, settings, choosing=1, epochs=4, batch_size=32,
        name="DeltaNet and attention", start=start, score=lambda o, y: loss_of(o, y).item(), lower_is_better=True,
    )  # fmt: skip
    return Report("deltanet", "nats per character", cases, draw_curves, notes=notes)
