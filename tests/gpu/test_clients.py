"""Trainers of others on a GPU, where they are installed: transformers' own, with half precision, and PEFT's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import nn

import lfpgraph

from ..support.device import DEVICE

pytestmark = pytest.mark.gpu


class Texts(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(i)
        return {"input_ids": torch.randint(1, 60, (7,), generator=generator), "labels": torch.tensor(i % 2)}


@pytest.mark.parametrize("options", [{"fp16": True}, {"bf16": True}, {"gradient_checkpointing": True}, {}], ids=str)
def test_the_trainer_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    """The model is wrapped on the CPU; the trainer moves it. Loss falls, and nothing is left in half precision."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    if options.get("fp16") and DEVICE == "cpu":
        pytest.skip("half precision with a scaler needs a GPU")
    torch.manual_seed(0)
    model, _ = build_tiny("bert", layers=1)
    lfpgraph.wrap(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=15, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
        logging_steps=1, save_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=Texts())
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert next(model.parameters()).device.type == DEVICE
    assert lfpgraph.is_wrapped(model) and losses[-1] < 0.9 * losses[0], losses
    assert not torch.is_autocast_enabled(DEVICE)


def test_an_adapter_learns() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model, batch = build_tiny("gpt2", layers=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).to(DEVICE)
    wrapped: nn.Module = lfpgraph.wrap(adapted)
    ids = batch["input_ids"].to(DEVICE)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = wrapped(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
