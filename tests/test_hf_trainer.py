"""transformers: the Trainer as it is, checkpoints, generate, copies."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

CLASSES = 4


def bert(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, num_channels=1, hidden_size=16, num_hidden_layers=2,
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


class StopAt(transformers.TrainerCallback):
    """Ends training after a step, as an interruption would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


def train(
    model: nn.Module, name: str, folder: Path, *, stop: int | None = None, resume: str | None = None
) -> Any:
    """Four optimizer steps of two batches each; saves after the second."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        learning_rate=5e-3,
        save_steps=2,
        logging_steps=1,
        seed=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=items(name),
        callbacks=[StopAt(stop)] if stop else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def difference(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Largest difference of any floating-point entry."""
    assert got.keys() == want.keys()
    return max((got[k] - want[k]).abs().max().item() for k in want if want[k].is_floating_point())


def interrupted(make: Callable[..., nn.Module], name: str, folder: Path, wrapped: bool) -> dict[str, Tensor]:
    """Weights after a stop at half, and a resumption by a model of another start."""
    model = make()
    trainer = train(lfpgraph.wrap(model) if wrapped else model, name, folder, stop=2)
    assert trainer.state.global_step == 2
    model = make(seed=1)
    trainer = train(lfpgraph.wrap(model) if wrapped else model, name, folder, resume=str(folder / "checkpoint-2"))
    assert trainer.state.global_step == 4
    return weights(model)


@pytest.mark.parametrize("name", MODELS)
def test_trainer(name: str, tmp_path: Path) -> None:
    """Unchanged Trainer, accumulation and clipping; feedback ran, and a resumed run ends in the same weights."""
    make = MODELS[name]
    start = weights(make())
    model = lfpgraph.wrap(make())
    trainer = train(model, name, tmp_path / "whole")
    assert model.forward.traces == 1, "one program for all steps"
    assert trainer.model is model and lfpgraph.is_wrapped(model)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4 and all(0 < entry["grad_norm"] < float("inf") for entry in logged)
    whole = weights(model)

    plain = make()
    train(plain, name, tmp_path / "plain")
    backprop = weights(plain)
    moved = difference(backprop, start)
    assert moved > 1e-3 and difference(whole, start) > 0.1 * moved
    assert difference(whole, backprop) > 0.1 * moved, "feedback is not the gradient"

    assert difference(interrupted(make, name, tmp_path / "wrapped", wrapped=True), whole) <= 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_gradient_composite_trains_as_backprop(name: str, tmp_path: Path) -> None:
    """The same program with the true gradient follows backpropagation step by step, dropout included."""
    results = []
    for wrapped in (True, False):
        model = MODELS[name]()
        train(lfpgraph.wrap(model, "gradient") if wrapped else model, name, tmp_path / str(wrapped))
        results.append(weights(model))
    assert difference(*results) <= 1e-4
