"""Lightning and Fabric: automatic and manual optimisation, bf16, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lfpgraph

from .checks import check_first_step, difference, grads_of, wrapped

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def data() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=draw)
    return TensorDataset(x, (x.flatten(1).sum(1) > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.GELU(), nn.Linear(16, 2)
    )


class Automatic(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.first: dict[str, Tensor] = {}
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def on_after_backward(self) -> None:
        self.first = self.first or grads_of(self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class ByParts(Automatic):
    """A training step that goes through no forward of the module's."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network(x), y)


class Manual(Automatic):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.manual_backward(loss)
        self.on_after_backward()
        optimizer.step()


KINDS: dict[str, tuple[type[Automatic], dict[str, Any]]] = {
    "automatic optimisation": (Automatic, {}),
    "a step that calls parts": (ByParts, {}),
    "manual optimisation": (Manual, {}),
    "bf16-mixed": (Automatic, {"precision": "bf16-mixed"}),
    "bf16-true": (Automatic, {"precision": "bf16-true"}),
    "accumulation and clipping": (Automatic, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
}


def run(kind: str, way: str, whole: bool = True, epochs: int = 1) -> tuple[dict[str, Tensor], list[float]]:
    make, options = KINDS[kind]
    lightning.seed_everything(0, verbose=False)
    module = make()
    wrapped(module if whole else module.network, way)
    trainer = lightning.Trainer(max_epochs=epochs, **QUIET, **options)
    trainer.fit(module, DataLoader(data(), batch_size=16))
    return module.first, module.losses


@pytest.mark.client("lightning", "{kind}, the LightningModule or the network in it wrapped")
@pytest.mark.parametrize("kind", KINDS)
def test_trainer(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    rounding = 5e-2 if "bf16" in kind else 1e-5
    inner = check_first_step(lambda way: run(kind, way, False)[0], caplog, rounding)
    feedback = check_first_step(lambda way: run(kind, way)[0], caplog, rounding, lambda: inner)
    if "bf16" not in kind:
        by_hand = lfpgraph.wrap(network(), engine="static")
        x, y = next(iter(DataLoader(data(), batch_size=16)))
        F.cross_entropy(by_hand(x), y).backward()
        assert difference(feedback, grads_of(by_hand)) < 1e-5 or "accumulation" in kind
    (_, before), (_, after) = (run(kind, way, False, 8) for way in ("plain", "wrapped"))
    falls = [sum(losses[:4]) - sum(losses[-4:]) for losses in (before, after)]
    print(kind, falls)
    assert falls[1] > 0.8 * falls[0] > 0
    assert difference(run(kind, "plain")[0], run(kind, "plain")[0]) == 0  # nothing stays switched on


def by_fabric(way: str, precision: str, devices: int = 1) -> dict[str, Tensor]:
    fabric = lightning.Fabric(
        accelerator="cpu", devices=devices, precision=precision, strategy="ddp" if devices > 1 else "auto"
    )
    fabric.launch()
    model = network()
    model[1].eval()  # statistics of half a batch are others
    model, optimizer = fabric.setup(wrapped(model, way), torch.optim.AdamW(model.parameters(), lr=1e-3))
    loader = fabric.setup_dataloaders(DataLoader(data(), batch_size=16 // devices, shuffle=False))
    x, y = next(iter(loader))
    fabric.backward(F.cross_entropy(model(x), y))
    optimizer.step()
    return {n.removeprefix("_forward_module.").removeprefix("module."): g for n, g in grads_of(model).items()}


FABRIC = """
import sys, torch
from tests.clients.test_lightning import by_fabric
found = by_fabric("wrapped", "32-true", 2)
if torch.distributed.get_rank() == 0:
    torch.save(found, sys.argv[1])
"""


def by_script(script: Path, code: str, *arguments: str) -> None:
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    subprocess.run(command, check=True, env=environment, timeout=500)


@pytest.mark.client("lightning", "Fabric: setup, backward, bf16, two processes")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rounding = 5e-2 if "bf16" in precision else 1e-5
    feedback = check_first_step(lambda way: by_fabric(way, precision), caplog, rounding)
    if precision == "32-true":
        by_script(tmp_path / "fabric.py", FABRIC, str(tmp_path / "two"))
        assert difference(torch.load(tmp_path / "two"), feedback) < 1e-5


TWO = """
import os, sys, torch, lightning, lfpgraph
from torch.utils.data import DataLoader, Subset
from tests.clients.test_lightning import Automatic, QUIET, data
lightning.seed_everything(0, verbose=False)
module = Automatic()
for m in module.modules():
    if isinstance(m, torch.nn.BatchNorm2d): m.eval(); m.train = lambda mode=True: m
lfpgraph.wrap(module)
options = {**QUIET, "devices": int(sys.argv[1])}
if options["devices"] > 1: options["strategy"] = "ddp"
trainer = lightning.Trainer(max_steps=4, use_distributed_sampler=False, **options)  # Lightning's own would shuffle
rows = Subset(data(), range(int(os.environ.get("LOCAL_RANK", 0)), 64, options["devices"]))
trainer.fit(module, DataLoader(rows, batch_size=16 // options["devices"]))
if trainer.is_global_zero:
    torch.save({k: v for k, v in module.state_dict().items()}, sys.argv[2])
"""


@pytest.mark.client("lightning", "two processes (ddp)")
def test_two_processes(tmp_path: Path) -> None:
    """Two processes of half the batch each end where one does: rows are dealt out in turn, so each step has the same."""
    for devices in ("1", "2"):
        by_script(tmp_path / "two.py", TWO, devices, str(tmp_path / devices))
    one, two = (torch.load(tmp_path / devices) for devices in ("1", "2"))
    assert difference(two, one) < 1e-4
