"""A small run of `lfpgraph.Trainer`, for tests in this process, and for those that kill it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import LfpGraphError


def make_model(seed: int = 0, drop: float = 0.2) -> nn.Module:
    """A CNN with batch norm and dropout, so that buffers and random draws count."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(drop), nn.Linear(64, 5)
    )  # fmt: skip


def make_data(rows: int = 44, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Images [rows, 1, 6, 6] whose brightest of five cells is the label [rows]."""
    x = torch.randn(rows, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return x, x.flatten(1)[:, 7:12].argmax(1)


def make_trainer(folder: Path | None = None, model: nn.Module | None = None, **changed: Any) -> lfpgraph.Trainer:
    """Two epochs of six steps, unless changed."""
    settings: dict[str, Any] = {
        "loss": F.cross_entropy, "lr": 1e-2, "scheduler": "onecycle", "epochs": 2, "batch_size": 8, "folder": folder,
        "progress": False, "metrics": ["accuracy"], "save_every": 1,
    }  # fmt: skip
    train = changed.pop("train_data", make_data())
    test = changed.pop("eval_data", make_data(20, 4))
    return lfpgraph.Trainer(model if model is not None else make_model(), train, test, **{**settings, **changed})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, copied."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole_run(folder: Path, epochs: int) -> None:
    """Begin or take up a run, end it, and write its weights: for a process of its own, which may be killed."""
    run = make_trainer(folder, epochs=epochs)
    run.train(resume="auto")
    torch.save(weights(run.model), folder / "final.pt")


def run_on_a_full_disk(folder: Path) -> None:
    """From the fourth step on no file may grow beyond a small size: what a full disk says, and does. Exit status 3."""
    import resource

    trainer = make_trainer(folder, save_every=2, eval_data=None, metrics=[])
    try:
        for record in trainer.iterate():
            if record["step"] == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    except LfpGraphError as error:
        (folder / "error.txt").write_text(f"{error}\n")
        sys.exit(3)
