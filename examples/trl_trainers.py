"""TRL's SFT, DPO and GRPO trainers, unmodified, on a language model that learns by feedback.

    pip install trl
    python examples/trl_trainers.py sft            # or dpo, or grpo; --model FOLDER_OR_NAME for a real one

One line differs from TRL's own documentation: `lfpgraph.wrap(model)`. The model is a small GPT-2 made on the spot, its texts
are paragraphs of Python's documentation, and GRPO's reward is the share of letters e. With a model of your own, start with the
learning rate that backprop likes.
"""

from __future__ import annotations

import argparse
import tempfile
from pydoc_data.topics import topics
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl

import lfpgraph


def texts() -> list[str]:
    """Paragraphs of Python's own documentation."""
    found = [" ".join(part.split()) for text in topics.values() for part in str(text).split("\n\n")]
    return [part for part in found if 60 < len(part) < 400][:512]


def small_model(known: list[str]) -> tuple[Any, Any]:
    """A GPT-2 of two layers and a tokenizer of 1000 pieces."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(known, vocab_size=1000, special_tokens=["<pad>", "<end>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="<pad>", eos_token="<end>"
    )
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_layer=2, n_embd=64, n_head=4, n_positions=256, pad_token_id=0, eos_token_id=1,
        bos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), tokenizer


def letters_e(completions: list[str], **_: Any) -> list[float]:
    """The reward of each completion: its share of letters e."""
    return [10.0 * text.count("e") / max(len(text), 1) for text in completions]


def trainer_of(way: str, model: Any, tokenizer: Any, known: list[str], folder: str, steps: int, rate: float) -> Any:
    """TRL's trainer of a kind, with its data."""
    common = {
        "output_dir": folder, "max_steps": steps, "learning_rate": rate, "per_device_train_batch_size": 8, "logging_steps": 5,
        "report_to": [], "save_strategy": "no", "bf16": torch.accelerator.is_available(),  # TRL's default, and an error on CPUs
    }  # fmt: skip
    given = {"model": model, "processing_class": tokenizer}
    if way == "sft":
        data = datasets.Dataset.from_dict({"text": known})
        return trl.SFTTrainer(args=trl.SFTConfig(max_length=64, packing=True, **common), train_dataset=data, **given)
    if way == "grpo":
        data = datasets.Dataset.from_dict({"prompt": [text[:24] for text in known]})
        arguments = trl.GRPOConfig(num_generations=4, max_completion_length=16, **common)
        return trl.GRPOTrainer(args=arguments, train_dataset=data, reward_funcs=letters_e, **given)
    words = [text.split(" ") for text in known]
    ends = [" " + " ".join(w[len(w) // 2 :]) for w in words]
    starts = [" ".join(w[: len(w) // 2]) for w in words]
    data = datasets.Dataset.from_dict({"prompt": starts, "chosen": ends, "rejected": ends[1:] + ends[:1]})
    arguments = trl.DPOConfig(max_length=96, **common)
    reference = type(model)(model.config)
    reference.load_state_dict(model.state_dict())
    return trl.DPOTrainer(ref_model=reference, args=arguments, train_dataset=data, **given)


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Train; returns what the trainer has logged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=("sft", "dpo", "grpo"))
    parser.add_argument("--model", help="a folder or hub name, in place of the small model")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=3e-3)
    options = parser.parse_args(argv)
    known = texts()
    if options.model:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    else:
        model, tokenizer = small_model(known)
    lfpgraph.wrap(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(options.way, model, tokenizer, known, folder, options.steps, options.rate)
        trainer.train()
    print(lfpgraph.explain_wrap(model))
    return trainer.state.log_history


if __name__ == "__main__":
    main()
