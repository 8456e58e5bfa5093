"""What all tests of clients share: a tokenizer made on the spot, small models, texts, and a trainer's first step."""

from __future__ import annotations

import functools
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from .checks import grads_of

__all__ = ["CHAT", "FirstStep", "gpt2", "llama", "qwen3", "texts", "tokenizer"]

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOPICS = ("assert", "class", "for", "if", "import", "return", "try", "while", "with", "lambda", "yield", "FORMATTING")


@functools.cache
def texts() -> tuple[str, ...]:
    """Paragraphs of Python's own documentation, of many lengths."""
    whole = "\n\n".join(str(topics.get(name, "")) for name in _TOPICS)
    found = [" ".join(part.split()) for part in whole.split("\n\n")]
    return tuple(part for part in found if 40 < len(part) < 400)[:64]


@functools.cache
def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHAT, model_max_length=128
    )


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 400 pieces with a chat template."""
    import copy

    return copy.deepcopy(_tokenizer())


def _special(config: Any) -> Any:
    known = _tokenizer()
    config.pad_token_id, config.eos_token_id, config.bos_token_id = known.pad_token_id, known.eos_token_id, None
    return config


def gpt2(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    given = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128, "vocab_size": len(_tokenizer()), **options}
    return transformers.GPT2LMHeadModel(_special(transformers.GPT2Config(**given)))


def _decoder(kind: str, seed: int, options: dict[str, Any]) -> Any:
    torch.manual_seed(seed)
    given = {
        "vocab_size": len(_tokenizer()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, **options,
    }  # fmt: skip
    config = _special(getattr(transformers, f"{kind}Config")(**given))
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def llama(seed: int = 0, **options: Any) -> Any:
    return _decoder("Llama", seed, options)


def qwen3(seed: int = 0, **options: Any) -> Any:
    return _decoder("Qwen3", seed, {"head_dim": 8, **options})


class FirstStep(transformers.TrainerCallback):
    """Keeps the gradients that the optimizer is given at its first step, and stops there unless told otherwise."""

    def __init__(self, steps: int = 1) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            self.gradients = grads_of(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            control.should_training_stop = True
