"""PEFT: every tuner it has trains by feedback, is saved, loaded and merged as ever."""

from __future__ import annotations

import logging
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .checks import check_first_step, grads_of, wrapped
from .peft_kinds import KINDS, adapted
from .support import llama

TASKS = {"multitask prompt tuning", "poly"}  # which are told a task with each row
SINGLE = {"AdaMSS"}  # which works in float32, whatever the model's type
# Of which one line says that their vectors are matrices in truth, and take the plain signal.
TOLD = {"RoAd": "are vectors that the model cuts into matrices"}
# PEFT itself cannot merge these; what it merges of repeated layers is another model.
UNMERGED = {
    "BEFT", "CPT", "Cartridge", "Lily", "Shadow", "aLoRA", "LoRA, layer_replication", "LoRA with dropout and bias",
    "prompt tuning", "prefix tuning", "prefix tuning with projection", "p-tuning", "p-tuning, LSTM",
    "multitask prompt tuning", "adaption prompt", "poly",
}  # fmt: skip


def batch(kind: str) -> dict[str, Tensor]:
    ids = torch.randint(3, 400, (4, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 3:7] = torch.tensor([3, 40, 50, 90])
    tasks = {"task_ids": torch.zeros(4, dtype=torch.long)} if kind in TASKS else {}
    return {"input_ids": ids, "labels": ids, **tasks}


def run(kind: str, way: str, steps: int = 1) -> tuple[dict[str, Tensor], list[float], nn.Module]:
    model = adapted(kind)
    wrapped(model if kind in SINGLE else model.double(), way)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found: list[float] = []
    first: dict[str, Tensor] = {}
    for i in range(steps):
        torch.manual_seed(7)
        loss = model(**batch(kind)).loss
        optimizer.zero_grad()
        loss.backward()
        first = first or grads_of(model)
        optimizer.step()
        if kind == "AdaLoRA":
            model.base_model.update_and_allocate(i)
        found.append(loss.item())
    return first, found, model


@pytest.mark.client("peft", "{kind}")
@pytest.mark.parametrize("kind", KINDS)
def test_tuner(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tuner's first step, what it learns, and that it is saved, loaded and merged."""
    check_first_step(lambda way: run(kind, way)[0], caplog, 2e-6 if kind in SINGLE else 1e-7, told=TOLD.get(kind, ""))
    (_, before, _), (_, after, model) = (run(kind, way, 12) for way in ("plain", "wrapped"))
    falls = [losses[0] - losses[-1] for losses in (before, after)]
    print(kind, falls)
    assert falls[1] > 0.5 * falls[0] > 0  # in so few steps

    model.eval()
    given = {k: v for k, v in batch(kind).items() if k != "labels"}
    with torch.no_grad():
        expected = model(**given).logits
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(llama(0), tmp_path).to(expected.dtype).eval()
        torch.testing.assert_close(loaded(**given).logits, expected, rtol=1e-5, atol=1e-6)
        if kind not in UNMERGED:
            torch.testing.assert_close(model.merge_and_unload()(**given).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.client("peft", "a warning where nothing that trains can move (BEFT under `lfp-epsilon`)")
def test_nothing_moves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        model = lfpgraph.wrap(adapted("BEFT"), "lfp-epsilon")
        model(**batch("BEFT")).loss.backward()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "lfpgraph"]
    assert 'scale="signal"' in said


@pytest.mark.client("peft", "X-LoRA: a mixture of saved adapters")
def test_xlora(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("0", "1")  # PEFT 0.21 fails, wrapped or not, where adapters have other names
    for seed, name in enumerate(names):
        adapter = adapted("LoRA", seed)
        for weight in (p for n, p in adapter.named_parameters() if "lora_B" in n):
            nn.init.normal_(weight, std=0.1)  # adapters that do something, so that a mixture of them can learn
        adapter.save_pretrained(tmp_path / name)

    def train(way: str, steps: int) -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(1)
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=32, xlora_depth=1, adapters={n: str(tmp_path / n) for n in names},
        )  # fmt: skip
        model = wrapped(peft.get_peft_model(llama(0, use_cache=False), config), way)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        first: dict[str, Tensor] = {}
        losses = []
        for _ in range(steps):
            loss = model(**batch("X-LoRA")).loss
            optimizer.zero_grad()
            loss.backward()
            first = first or grads_of(model)
            optimizer.step()
            losses.append(loss.item())
        return first, losses

    check_first_step(lambda way: train(way, 1)[0], caplog, 1e-4, None)
    (_, before), (_, after) = (train(way, 30) for way in ("plain", "wrapped"))
    print(before[0] - before[-1], after[0] - after[-1])
    assert after[0] - after[-1] > 0.8 * (before[0] - before[-1]) > 0
