"""Small models of transformers, and data for its Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

__all__ = ["CLASSES", "MODELS", "batch", "bert", "gpt2", "items", "vit"]

CLASSES = 4


def bert(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, num_channels=1, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, num_labels=CLASSES, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


MODELS: dict[str, Callable[..., nn.Module]] = {"bert": bert, "vit": vit}


def items(name: str, count: int = 32) -> list[dict[str, Any]]:
    """A data set with `labels` in it, as the Trainer's default collator likes it."""
    generator = torch.Generator().manual_seed(11)
    result = []
    for i in range(count):
        if name == "vit":
            item: dict[str, Any] = {"pixel_values": torch.randn(1, 16, 16, generator=generator)}
        else:
            mask = torch.ones(12, dtype=torch.long)
            mask[8 + i % 5 :] = 0
            item = {"input_ids": torch.randint(60, (12,), generator=generator), "attention_mask": mask}
        result.append({**item, "labels": i % CLASSES})
    return result


def batch(name: str, count: int = 5) -> dict[str, Tensor]:
    return transformers.default_data_collator(items(name, count))
