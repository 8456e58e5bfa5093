"""Settings of `lfpgraph.Trainer`: in groups or one by one, checked when they are given."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import CheckpointError, DataError, TrainingError
from lfpgraph.training import Evaluation, Feedback, Loading, Objective, Running, Saving, Update
from lfpgraph.training.settings import Settings

from .support.trainer_run import make_data, make_model, make_trainer, same, weights

pytest.importorskip("accelerate")

# What the Trainer took when it had no groups, in their order.
SINGLE = (
    "loss", "reward", "step", "optimizer", "lr", "scheduler", "epochs", "max_steps", "batch_size", "accumulate", "clip",
    "composite", "wrap_options", "policies", "metrics", "monitor", "greater", "patience", "margin", "load_best", "folder",
    "eval_every", "save_every", "keep", "loggers", "progress", "seed", "mixed_precision", "device", "check_finite", "labels",
    "workers", "collate",
)  # fmt: skip


def test_single_settings_equal_grouped_ones(tmp_path: Path) -> None:
    data, test = make_data(), make_data(20, 4)
    single = lfpgraph.Trainer(
        make_model(), data, test, loss=F.cross_entropy, lr=1e-2, scheduler="onecycle", clip=0.5, epochs=2, seed=3,
        batch_size=8, composite="lfp-epsilon", metrics=["accuracy"], monitor="eval_accuracy", load_best=True,
        folder=tmp_path / "single", save_every=1, keep=1, progress=False,
    )  # fmt: skip
    grouped = lfpgraph.Trainer(
        make_model(),
        data,
        test,
        objective=Objective(loss=F.cross_entropy),
        feedback=Feedback("lfp-epsilon"),
        loading=Loading(batch_size=8),
        update=Update(lr=1e-2, scheduler="onecycle", clip=0.5),
        running=Running(epochs=2, seed=3),
        evaluation=Evaluation(metrics=["accuracy"], monitor="eval_accuracy", load_best=True),
        saving=Saving(folder=tmp_path / "grouped", save_every=1, keep=1, progress=False),
    )
    groups = [group.name for group in fields(Settings) if group.name != "saving"]
    assert [getattr(single.settings, g) for g in groups] == [getattr(grouped.settings, g) for g in groups]
    first, second = single.train(), grouped.train()
    assert same(weights(single.model), weights(grouped.model)) and first.metrics == second.metrics
    assert first.checkpoint is not None and second.checkpoint is not None
    assert first.checkpoint.name == second.checkpoint.name


def test_every_single_setting_has_one_group() -> None:
    groups = {group.name: [setting.name for setting in fields(type(group.default))] for group in fields(Settings)}
    assert sorted(name for settings in groups.values() for name in settings) == sorted(SINGLE)
    parameters = inspect.signature(lfpgraph.Trainer).parameters
    assert list(parameters) == ["model", "train_data", "eval_data", *groups, "single"]
    for settings in groups.values():
        assert all(f"`{name}`" in (lfpgraph.Trainer.__doc__ or "") for name in settings)


def test_a_single_setting_replaces_its_groups() -> None:
    settings = Settings.of({"lr": 0.5, "folder": "run"}, update=Update(lr=0.1, accumulate=2))
    assert (settings.update.lr, settings.update.accumulate, settings.saving.folder) == (0.5, 2, "run")
    with pytest.raises(FrozenInstanceError):
        settings.update.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epoch": 3}, TypeError, "no argument 'epoch'; near it: epochs"),
        ({"save_evry": 3}, TypeError, "no argument 'save_evry'; near it: save_every"),
        ({"updates": Update()}, TypeError, "no argument 'updates'; near it: update"),
        ({"update": Saving()}, TypeError, "update= must be of the class Update, not Saving"),
        ({"update": {"lr": 1.0}}, TypeError, "update= must be of the class Update, not dict"),
    ],
)
def test_arguments_of_no_group(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lfpgraph.Trainer(make_model(), make_data(), **given)


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        (Running, {"epochs": 0}, "epochs=0 must be a whole number"),
        (Loading, {"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        (Update, {"accumulate": 0}, "accumulate=0 must be"),
        (Saving, {"keep": 0}, "keep=0 must be"),
        (Saving, {"save_every": "step"}, "save_every='step' is not known"),
        (Evaluation, {"eval_every": 0}, "eval_every=0 is not known"),
        (Objective, {"loss": F.cross_entropy, "reward": F.mse_loss}, "one of loss, reward and step"),
        (Objective, {"loss": "mse"}, "loss='mse' must be a function"),
        (Loading, {"batch_size": True}, "batch_size=True must be a whole number"),
        (Loading, {"batch_size": 10**30}, "must be a whole number"),
        (Loading, {"workers": -1}, "workers=-1 must be"),
        (Running, {"max_steps": 1.5}, "max_steps=1.5 must be a whole number of 1 or more, or None"),
        (Running, {"seed": 2**40}, "seed=1099511627776 must be a whole number from 0"),
        (Running, {"seed": None}, "seed=None must be"),
        (Update, {"lr": float("nan")}, "lr=nan must be a finite number"),
        (Update, {"lr": "1e-3"}, "lr='1e-3' must be a finite number"),
        (Update, {"clip": 0}, "clip=0 must be a number above 0, or None"),
        (Update, {"clip": -1.0}, "clip=-1.0 must be"),
        (Evaluation, {"metrics": "accuracy"}, "metrics='accuracy' must be a list"),
        (Evaluation, {"patience": 0}, "patience=0 must be"),
        (Saving, {"folder": 5}, "folder=5 must be the path"),
        (Saving, {"folder": b"run"}, "folder=b'run' must be the path"),
        (Saving, {"folder": ""}, "folder='' must be the path"),
        (Saving, {"loggers": None}, "loggers=None must be a list"),
        (Saving, {"progress": "yes"}, "progress='yes' is not known"),
    ],
)
def test_a_group_is_checked_when_it_is_made(group: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        group(**given)


class Broken(list[Any]):
    """A dataset of which one row cannot be read."""

    def __getitem__(self, row: Any) -> Any:
        if row == 9:
            raise OSError("image truncated")
        return torch.zeros(1, 6, 6), 0


class Endless(torch.utils.data.Dataset[Any]):
    """One that cannot say how long it is."""

    def __getitem__(self, row: int) -> Any:
        return torch.zeros(1, 6, 6), 0

    def __len__(self) -> int:
        raise OverflowError("no end")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "abacus"}, "device='abacus' is not known"),
        ({"device": "cuda:99"}, "device='cuda:99' is not known"),
        ({"scheduler": 3}, "scheduler=3 cannot be made"),
        ({"optimizer": nn.Linear}, "cannot be made: TypeError"),
        ({"loggers": [3]}, "no logger 3"),
        ({"model": 5}, "must be an nn.Module with weights, not 5"),
        ({"model": nn.Linear(36, 5, device="meta")}, "without values"),
        ({"train_data": "data"}, "not str"),
        ({"train_data": (make_data()[0].numpy(), make_data()[1].numpy())}, "not tuple of ndarray, ndarray"),
        ({"train_data": (*make_data(), make_data()[1])}, "not tuple of Tensor, Tensor, Tensor"),
        ({"train_data": Endless()}, "length cannot be had: OverflowError: no end"),
        ({"train_data": [(torch.zeros(1, 6, 6, device="meta"), 0)]}, "cannot be moved to"),
        ({"train_data": Broken(range(44))}, r"batch \d of the epoch cannot be made: OSError: image truncated"),
        ({"train_data": [(torch.zeros(1, 6, 6), 0), (torch.zeros(1, 6, 7), 0)]}, "batch 1 .* equal size"),
        ({"loss": lambda outputs, labels: outputs}, r"gives a loss \[8, 5\], where one number"),
        ({"loss": lambda outputs, labels: 1.0}, "gives a loss of type float"),
    ],
)
def test_what_a_trainer_does_not_take(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TrainingError, DataError), match=message):
        make_trainer(**{"eval_data": None, "metrics": [], **given}).train()


@pytest.mark.parametrize("resume", [5, b"run", ["run"], "x" * 5000])
def test_what_is_no_path_of_a_checkpoint(tmp_path: Path, resume: Any) -> None:
    with pytest.raises(CheckpointError, match="given by its path|name too long"):
        make_trainer(tmp_path).train(resume=resume)


@pytest.mark.parametrize("composite", ["lfp", None])
def test_a_rate_that_learns_is_suggested(composite: str | None) -> None:
    """Between rates that learn too little and rates that diverge; the model and the random state stay as they were."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = (x, (x[:, 0] > 0).long())
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    before, state = {name: p.clone() for name, p in model.state_dict().items()}, torch.get_rng_state()
    rate = lfpgraph.suggest_lr(model, data, loss=F.cross_entropy, composite=composite, steps=60)
    assert 1e-3 < rate < 0.3
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not lfpgraph.is_wrapped(model)


def test_what_no_range_test_can_tell_is_refused() -> None:
    model, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    for settings in ({"lowest": 1.0, "highest": 0.1}, {"steps": 3}, {"reward": lfpgraph.rewards.Softmax()}):
        with pytest.raises(TrainingError):
            lfpgraph.suggest_lr(model, data, **settings)
