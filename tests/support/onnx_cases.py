"""Models whose training step is exported: one for each kind that ONNX must carry, tiny, without dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lfpgraph.models_zoo import digits, other_kinds, torch_models
from torch import Tensor, nn

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """`batch(n)` draws inputs. `epsilon`: wide where signals are ill-conditioned (gates, steps, norms; docs/onnx.md)."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]
    epsilon: float = 1e-6
    lr: float = 1e-2


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))


def _norm_cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip


def _draw(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _ids(n: int) -> Tensor:
    return torch.randint(1, 60, (n, 9))


CASES: dict[str, Case] = {
    "mlp": Case(_mlp, _draw(20)),
    "lenet": Case(torch_models.lenet, _draw(1, 28, 28), epsilon=0.1),
    "norm_cnn": Case(_norm_cnn, _draw(1, 8, 8), epsilon=0.1),
    "step_cnn": Case(lambda: torch_models.step_cnn(width=4), _draw(1, 8, 8), epsilon=0.1),
    "lif": Case(lambda: other_kinds.SpikingMLP(64, 32, 10, 5), lambda n: 3 * torch.rand(n, 64)),
    "vit": Case(digits.vit, _draw(1, 8, 8), epsilon=0.1),
    "bert": Case(_bert, _ids, epsilon=0.1),
    "gpt2": Case(_gpt2, _ids, epsilon=0.1),
    "lstm": Case(torch_models.LSTMClassifier, _draw(6, 4), epsilon=0.1),
}


def output_of(result: Any) -> Tensor:
    """The tensor of logits in a model's answer."""
    return result if isinstance(result, Tensor) else result.logits
