"""`torchrun` with two processes does what one process does on the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lfpgraph

from .support.trainer_run import make_data, make_trainer, weights

pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[1]


def make_model() -> nn.Module:
    """Without dropout and batch norm, which are each process's own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 5)
    ).double()  # fmt: skip


def run(folder: Path | None, loader: bool, accumulate: int) -> tuple[lfpgraph.Trainer, dict[str, float]]:
    """Two epochs; 43 rows, so that the last batch cannot be shared evenly, or 40 in a DataLoader."""
    x, y = make_data(40 if loader else 43)
    x = x.double()
    data: Any = DataLoader(TensorDataset(x, y), batch_size=8) if loader else (x, y)
    options: dict[str, Any] = {"train_data": data, "accumulate": accumulate, "save_every": "epoch", "device": "cpu"}
    options |= {"reward": lfpgraph.rewards.Softmax(), "loss": None}
    options["eval_data"] = tuple(t.double() if t.is_floating_point() else t for t in make_data(21, 4))
    trainer = make_trainer(folder, make_model(), **options)
    return trainer, trainer.train(resume="auto").metrics


if __name__ == "__main__":
    torch.set_num_threads(1)
    for loader, accumulate in ((False, 1), (False, 2), (True, 1)):
        folder = Path(sys.argv[1]) / f"{loader}-{accumulate}"
        trainer, metrics = run(folder, loader, accumulate)
        rank = trainer.accelerator.process_index
        torch.save({"weights": weights(trainer.model), "metrics": metrics, "rank": rank}, folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "tests.test_trainer_ddp", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    for loader, accumulate in ((False, 1), (False, 2), (True, 1)):
        folder = tmp_path / f"{loader}-{accumulate}"
        first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert (first["rank"], second["rank"]) == (0, 1)
        trainer, metrics = run(None, loader, accumulate)
        start = make_model().state_dict()
        for name, value in weights(trainer.model).items():
            assert torch.equal(first["weights"][name], second["weights"][name])
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-7, atol=1e-9)
            assert name.endswith("bias") or not torch.allclose(start[name], value, rtol=1e-3)
        assert first["metrics"] == second["metrics"] == pytest.approx(metrics)
        assert len(list((folder / "checkpoints").glob("step-*"))) == 2
