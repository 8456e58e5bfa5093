"""Tiny instances of the models every change must work on, each with a batch of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import torch_models

__all__ = ["TINY", "build_tiny"]

Batch = dict[str, Any]
_KEYWORDS: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def _images(channels: int, size: int, n: int = 3) -> Batch:
    return {"input": torch.randn(n, channels, size, size)}


def _ids(n: int, length: int = 7) -> torch.Tensor:
    return torch.randint(1, 60, (n, length))


def _torch(
    build: Callable[[], nn.Module], inputs: Callable[[int], torch.Tensor]
) -> Callable[..., tuple[nn.Module, Batch]]:
    return lambda attention, n, layers: (build(), {"input": inputs(n)})


def _bert(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60,
        max_position_embeddings=32,
        num_labels=3,
        attn_implementation=attention,
        num_hidden_layers=layers,
        **_KEYWORDS,
    )
    ids = _ids(n)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return BertForSequenceClassification(config), {
        "input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 3,
    }  # fmt: skip


def _vit(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_labels=10, attn_implementation=attention,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, num_hidden_layers=layers, **_KEYWORDS,
    )  # fmt: skip
    return ViTForImageClassification(config), {
        "pixel_values": torch.randn(n, 1, 8, 8),
        "labels": torch.arange(n) % 10,
    }


def _resnet(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
    return ResNetForImageClassification(config), {
        "pixel_values": torch.randn(n, 3, 32, 32), "labels": torch.arange(n) % 10,
    }  # fmt: skip


def _gpt2(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=60, n_positions=32, n_embd=32, n_layer=layers, n_head=4, bos_token_id=1, eos_token_id=2,
        attn_implementation=attention, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    ids = _ids(n)
    return GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def _llama(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=60, num_key_value_heads=2, attn_implementation=attention, num_hidden_layers=layers, **_KEYWORDS
    )
    ids = _ids(n)
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _qwen3(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=60,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation=attention,
        num_hidden_layers=layers,
        **_KEYWORDS,
    )
    ids = _ids(n)
    return Qwen3ForCausalLM(config), {"input_ids": ids, "labels": ids}


def _t5(attention: str, n: int, layers: int) -> tuple[nn.Module, Batch]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4, decoder_start_token_id=0,
        attn_implementation=attention,
    )  # fmt: skip
    ids = _ids(n)
    return T5ForConditionalGeneration(config), {"input_ids": ids, "labels": _ids(n, 5)}


TINY: dict[str, Callable[[str, int, int], tuple[nn.Module, Batch]]] = {
    "mlp": _torch(torch_models.mlp, lambda n: torch.randn(n, 20)),
    "lenet": _torch(torch_models.lenet, lambda n: torch.randn(n, 1, 28, 28)),
    "vgg": _torch(lambda: torch_models.vgg(norm=False), lambda n: torch.randn(n, 3, 16, 16)),
    "vgg-bn": _torch(torch_models.vgg, lambda n: torch.randn(n, 3, 16, 16)),
    "resnet18": _torch(lambda: torch_models.ResNet18(5, 8), lambda n: torch.randn(n, 3, 32, 32)),
    "lstm": _torch(torch_models.LSTMClassifier, lambda n: torch.randn(n, 5, 4)),
    "step-cnn": _torch(torch_models.step_cnn, lambda n: torch.randn(n, 1, 8, 8)),
    "hf-resnet": _resnet,
    "vit": _vit,
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen3": _qwen3,
    "t5": _t5,
}


def build_tiny(
    name: str, attention: str = "eager", batch: int = 3, seed: int = 0, layers: int = 2
) -> tuple[nn.Module, Batch]:
    """A tiny model of a name in `TINY` and keyword inputs for it (labels included where the model takes them).

    `layers` is how many a transformer has; the other models are as deep as they are.
    """
    torch.manual_seed(seed)
    return TINY[name](attention, batch, layers)
