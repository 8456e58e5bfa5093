"""transformers.Trainer and Seq2SeqTrainer, with the options people set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import DataCollatorForLanguageModeling, TrainingArguments

import lfpgraph

from .support import FirstStep, difference, gpt2, texts, tokenizer

PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": 4, "max_grad_norm": 0.0, "learning_rate": 1e-3, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 3,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "bf16": {"bf16": True},
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing, reentrant": {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "bf16 and gradient_checkpointing": {"bf16": True, "gradient_checkpointing": True},
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "workers": {"dataloader_num_workers": 2},
    "accumulation": {"gradient_accumulation_steps": 3},
    "clipping": {"max_grad_norm": 0.01},
    "Adafactor": {"optim": "adafactor"},
    "auto_find_batch_size": {"auto_find_batch_size": True},
}  # fmt: skip


def items() -> list[dict[str, Any]]:
    known = tokenizer()
    return [known(text, truncation=True, max_length=48) for text in texts()]


def made(folder: Path, composite: str | None, steps: int = 1, **options: Any) -> tuple[nn.Module, Any, FirstStep]:
    """A trainer on a small GPT-2, wrapped before; dropout as GPT-2 has it."""
    model = gpt2()
    if composite is not None:
        lfpgraph.wrap(model, composite)
    first = FirstStep(steps)
    trainer = transformers.Trainer(
        model=model, args=TrainingArguments(output_dir=str(folder), **{**PLAIN, **options}), train_dataset=items(),
        data_collator=DataCollatorForLanguageModeling(tokenizer(), mlm=False), callbacks=[first],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return model, trainer, first


def first_gradients(folder: Path, composite: str | None, **options: Any) -> dict[str, Tensor]:
    _, trainer, first = made(folder, composite, **options)
    trainer.train()
    return first.gradients


@pytest.mark.client("transformers", "Trainer: {name}")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = OPTIONS[name]
    torch._dynamo.reset()
    plain = first_gradients(tmp_path, None, **options)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        assert difference(first_gradients(tmp_path, "gradient", **options), plain) < 1e-5
        torch._dynamo.reset()
        assert difference(first_gradients(tmp_path, "recorded", **options), plain) < (
            3e-2 if "bf16" in options else 1e-5
        )
        torch._dynamo.reset()
        feedback = first_gradients(tmp_path, "lfp-epsilon", **options)
    assert [record.getMessage() for record in caplog.records if record.name == "lfpgraph"] == []
    assert difference(feedback, plain) > 0.1
