"""`lfpgraph.Trainer` in one process: it learns, resumes to the bit, evaluates, logs, stops early."""

from __future__ import annotations

import csv
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lfpgraph
from lfpgraph.errors import DataError, MissingPackageError, TrainingError, TrainingInterrupted

from .support.trainer_run import make_data, make_model, make_trainer, same, weights

pytest.importorskip("accelerate")


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_equals_a_loop_written_by_hand() -> None:
    """Same order, same clipping, same schedule: the Trainer adds nothing to the numbers."""
    trainer = make_trainer(model=make_model(drop=0.0), metrics=[])
    outcome = trainer.train()
    model = lfpgraph.wrap(make_model(drop=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12, cycle_momentum=False)
    x, y = make_data()
    for epoch in range(2):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(8):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    assert same(weights(trainer.model), weights(model))
    assert (outcome.steps, outcome.epochs, outcome.reason, outcome.checkpoint) == (12, 2, "finished", None)


def test_learns_by_reward_and_knows_its_best(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_model(drop=0.0), loss=None, reward=lfpgraph.rewards.Softmax(), epochs=12, monitor="eval_accuracy",
        train_data=make_data(200), save_every="epoch", load_best=True, lr=3e-2,
    )  # fmt: skip
    outcome = trainer.train()
    assert outcome.best is not None and outcome.best >= 0.75
    assert trainer.evaluate()["eval_accuracy"] == outcome.best == max(r["eval_accuracy"] for r in trainer.history)
    assert {f.name for f in (tmp_path / "checkpoints").iterdir()} >= {f"step-{outcome.best_step:08d}"}
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 3


@pytest.mark.parametrize(("loader", "stop"), [(False, 4), (False, 6), (True, 9)])
def test_resumed_run_ends_in_the_same_weights(tmp_path: Path, loader: bool, stop: int) -> None:
    """Dropout, batch norm, shuffling, AdamW and the schedule go on where they stopped, inside and between epochs."""

    def data() -> Any:
        return DataLoader(TensorDataset(*make_data()), batch_size=8, shuffle=True) if loader else make_data()

    whole = make_trainer(tmp_path / "whole", train_data=data())
    whole.train()
    half = make_trainer(tmp_path / "half", train_data=data())
    for record in half.iterate():
        if record["step"] == stop:
            half.save()
            break
    torch.rand(7)  # a fresh process has other states
    rest = make_trainer(tmp_path / "half", make_model(seed=9), train_data=data())
    outcome = rest.train(resume=True)
    assert outcome.steps == 12 and same(weights(rest.model), weights(whole.model))
    assert not same(weights(half.model), weights(whole.model))
    logs = [read_log(tmp_path / name) for name in ("whole", "half")]
    for record in [record for log in logs for record in log]:
        record.pop("seconds", None)
    assert logs[0] == logs[1] and rest.history == whole.history


def test_resume_restores_loader_generator(tmp_path: Path) -> None:
    """A DataLoader with a generator of its own goes on in its order, also from the end of an epoch."""

    def data() -> Any:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(TensorDataset(*make_data()), batch_size=8, shuffle=True, generator=generator)

    half = make_trainer(tmp_path / "half", train_data=data(), epochs=1, scheduler=None)
    whole = make_trainer(tmp_path / "whole", train_data=data(), scheduler=None)
    half.train()
    whole.train()
    rest = make_trainer(tmp_path / "half", make_model(seed=9), train_data=data(), scheduler=None)
    rest.train(resume="auto")
    assert same(weights(rest.model), weights(whole.model))


def test_accumulation_is_the_joined_batch() -> None:
    """Batches of four, two to a step, and of eight at once; of 44 rows the last step has few, or batches that are uneven."""
    found = []
    for size, accumulate in ((8, 1), (4, 2), (3, 3), (12, 1), (6, 2)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        x, y = make_data()
        options: dict[str, Any] = {
            "metrics": [],
            "optimizer": partial(torch.optim.SGD, lr=0.1),
            "train_data": (x.double(), y),
        }
        trainer = make_trainer(model=model, batch_size=size, accumulate=accumulate, eval_data=None, **options)
        outcome = trainer.train()
        found.append((outcome.steps, weights(model)))
    assert [steps for steps, _ in found] == [12, 12, 10, 8, 8]
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[4][1][name], found[3][1][name], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(found[2][1][name], value)


def test_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen: list[Any] = []

    class Own:
        def write(self, record: Any) -> None:
            seen.append(dict(record))

        def close(self) -> None:
            seen.append("closed")

    make_trainer(tmp_path, loggers=("jsonl", "csv", "tensorboard", Own()), save_every="epoch").train()
    lines = read_log(tmp_path)
    assert seen == [*lines, "closed"] and len(lines) == 14
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {k: str(v) for k, v in line.items()} for line in lines
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in board.Scalars("eval_accuracy")] == [
        (line["step"], line["eval_accuracy"]) for line in lines if "eval_accuracy" in line
    ]


def test_stops_early() -> None:
    """No learning rate, no improvement; ReduceLROnPlateau moves at evaluations."""
    optimizer: Any = torch.optim.SGD
    model = make_model(drop=0.0)
    model[1].momentum = 0.0  # type: ignore[union-attr,assignment]
    made = partial(optimizer, lr=0.0)
    plateau = lambda o, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)  # noqa: E731
    trainer = make_trainer(model=model, optimizer=made, scheduler=plateau, epochs=50, patience=3)
    outcome = trainer.train()
    assert outcome.epochs == 4 and outcome.reason == "no better eval_loss in 3 evaluations" and outcome.best_step == 6


def test_batches_that_are_mappings_and_models_with_a_loss() -> None:
    """As transformers' models take them, with labels inside or apart; and a step of one's own for anything else."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make_model(drop=0.0)

        def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.body(pixels)
            return {"logits": logits} if labels is None else {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    x, y = make_data()
    items: Any = [{"pixels": a, "labels": b} for a, b in zip(x, y)]
    found = []
    mine = lambda model, batch: F.cross_entropy(model(batch["pixels"])["logits"], batch["labels"])  # noqa: E731
    for how in ({"loss": None}, {"loss": F.cross_entropy}, {"loss": None, "step": mine, "metrics": []}):
        trainer = make_trainer(model=Model(), train_data=items, eval_data=items, **how)
        outcome = trainer.train()
        found.append((weights(trainer.model), outcome.metrics["eval_loss"]))
    assert same(found[0][0], found[1][0]) and same(found[0][0], found[2][0])
    assert found[0][1] == pytest.approx(found[1][1]) == pytest.approx(found[2][1])


def test_data_without_a_length() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter([(a, b) for a, b in zip(*make_data(20))])

    with pytest.raises(TrainingError, match="max_steps"):
        make_trainer(train_data=Stream())
    outcome = make_trainer(train_data=Stream(), max_steps=4, epochs=9).train()
    assert (outcome.steps, outcome.epochs) == (4, 1) and "eval_loss" in outcome.metrics


def test_mixed_precision() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = make_trainer(mixed_precision="bf16", loss=None, reward=lfpgraph.rewards.Softmax())
        trainer.train()
        assert any("bfloat16" in str(n.meta.get("val")) for n in _graph(trainer.model)), "the trace holds the casts"
        assert all(v.dtype == torch.float32 for v in trainer.model.state_dict().values() if v.is_floating_point())
        with pytest.raises(TrainingError, match="mixed_precision"):
            make_trainer(mixed_precision="fp16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _graph(model: nn.Module) -> Any:
    from lfpgraph.reports.operations import plan_of

    return plan_of(model).graph.graph.nodes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    whole = make_trainer(tmp_path / "whole", save_every="epoch")
    whole.train()

    class Press:
        def write(self, record: Any) -> None:
            if record["step"] == 8:
                signal.raise_signal(number)

        def close(self) -> None:
            pass

    trainer = make_trainer(tmp_path / "run", loggers=("jsonl", Press()), save_every="epoch")
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=r"after step 8; .*step-00000008 holds it"):
        trainer.train()
    assert signal.getsignal(number) is before
    rest = make_trainer(tmp_path / "run", make_model(seed=4), save_every="epoch")
    rest.train(resume=True)
    assert same(weights(rest.model), weights(whole.model))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"train_data": (torch.zeros(0, 1, 6, 6), torch.zeros(0).long())}, DataError, "not one batch"),
        ({"train_data": DataLoader([])}, DataError, "not one batch"),
        ({"train_data": (torch.zeros(3, 1, 6, 6), torch.zeros(2).long())}, DataError, "3 inputs and 2 labels"),
        ({"train_data": 7}, DataError, "a Dataset, a DataLoader or a pair of tensors, not int"),
        ({"optimizer": "Adamw"}, TrainingError, "no optimizer 'Adamw'.*AdamW"),
        ({"scheduler": "step"}, TrainingError, "no scheduler 'step'.*onecycle"),
        ({"metrics": ["acuracy"]}, TrainingError, "no metric 'acuracy'.*accuracy"),
        ({"reward": lfpgraph.rewards.Softmax()}, TrainingError, "one of loss, reward and step"),
        ({"accumulate": 0}, TrainingError, "accumulate=0"),
        ({"eval_every": "step"}, TrainingError, "eval_every='step'"),
        ({"patience": 1, "eval_data": None}, TrainingError, "need eval_data"),
        ({"monitor": "eval_accuracy", "eval_data": None}, TrainingError, "need eval_data"),
        ({"load_best": True}, TrainingError, "needs a folder"),
        ({"model": make_model().requires_grad_(False)}, lfpgraph.LfpGraphError, "no parameter"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_trainer(**changed)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r"needs accelerate.*pip install 'lfpgraph\[trainer\]'"):
        make_trainer()
