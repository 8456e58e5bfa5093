"""What goes wrong in training: NaN, labels, other models' checkpoints, full disks, kills; the last checkpoint survives."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import CheckpointError, DataError, NonFiniteError, TrainingError

from .support.processes import start
from .support.trainer_run import make_data, make_model, make_trainer, run_on_a_full_disk, same, weights

pytest.importorskip("accelerate")
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")
from lfpgraph.training import checkpoint  # noqa: E402

from .support.kills import killed, readable  # noqa: E402
from .support.tampered import make_checkpoint, plain_trainer  # noqa: E402


class Fails(nn.Module):
    """Finite until its parameter grows negative: then the operation of `bad` makes NaN or infinity."""

    def __init__(self, bad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.bad = nn.Linear(36, 5), nn.Linear(5, 5), bad
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(x.flatten(1))
        late = (self.calls > 3).to(x.dtype)  # at the fourth step
        return self.last(self.bad(hidden.abs() + 1 - late * (hidden.abs() + 1)) * 0.1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.log, r"first in aten\.log\.default \(log, .*test_trainer_faults\.py:\d+\), which gives infinity"),
        (lambda h: h / h, r"first in aten\.div\.Tensor .*which gives NaN"),
    ],
    ids=["log", "div"],
)
def test_nan_names_the_operation(tmp_path: Path, bad: Any, message: str) -> None:
    """The step is not taken, and the checkpoint of the step before holds the weights."""
    trainer = make_trainer(tmp_path, Fails(bad))
    with pytest.raises(
        NonFiniteError, match=r"step 4 \(epoch 1, batch 4\): the loss is NaN or infinite: " + message
    ) as told:
        trainer.train()
    assert "the last good checkpoint is" in str(told.value) and "step-00000003" in str(told.value)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    checkpoint.load_weights(trainer.model, readable(tmp_path)[-1])
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())


def test_nan_on_the_way_back() -> None:
    """sqrt at zero: finite forward, infinite derivative (under the gradient's rules)."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(36, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(self.body(x.flatten(1)) * 0)

    trainer = make_trainer(model=Root(), composite="gradient", eval_data=None, metrics=[])
    with pytest.raises(NonFiniteError, match=r"the gradient is NaN .*first on the way back: aten\.sqrt\.default"):
        trainer.train()


@pytest.mark.parametrize("clip", [1.0, None])
def test_nan_in_data_and_in_the_loss(clip: float | None) -> None:
    x, y = make_data()
    x[10] = float("nan")
    with pytest.raises(NonFiniteError, match=r"epoch 1, batch \d.*input 0 holds NaN in row \d of the batch"):
        make_trainer(train_data=(x, y), clip=clip).train()
    nothing = lambda outputs, labels: (outputs * 0).sum().log()  # noqa: E731
    with pytest.raises(
        NonFiniteError, match="the loss itself makes it, -inf, of outputs that are finite.*no checkpoint yet"
    ):
        make_trainer(loss=nothing, clip=clip).train()


def test_weights_that_a_step_has_broken(tmp_path: Path) -> None:
    """Of a finite gradient the optimizer may make NaN; such weights take no good checkpoint's place."""
    trainer = make_trainer(tmp_path, keep=1, eval_data=None, metrics=[])
    with pytest.raises(NonFiniteError, match="step 4 has made 0.weight NaN or infinite.* last good .*step-00000003"):
        for record in trainer.iterate():
            if record["step"] == 3:
                trainer.optimizer.state[trainer.model[0].weight]["exp_avg_sq"].fill_(-1)
    checkpoint.load_weights(trainer.model, *readable(tmp_path))
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("kind", ["loss", "reward", "inside"])
def test_labels_out_of_range(tmp_path: Path, kind: str) -> None:
    x, y = make_data()
    y[int(torch.randperm(len(y), generator=torch.Generator().manual_seed(1))[3])] = (
        7  # in the second epoch's first batch
    )
    wrong: dict[str, Any] = {"loss": F.cross_entropy} if kind == "loss" else {"loss": None}
    wrong |= {"reward": lfpgraph.rewards.Softmax()} if kind == "reward" else {}
    model: Any = make_model()
    if kind == "inside":

        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = make_model()

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.body(x)
                return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

        model, wrong["train_data"] = Own(), [{"x": a, "labels": b} for a, b in zip(x, y)]
    trainer = make_trainer(tmp_path, model, **{"train_data": (x, y), "eval_data": None, "metrics": [], **wrong})
    with pytest.raises(
        DataError, match=r"step \d+ \(epoch 1, batch \d\): .*labels \[\d\] from \d to 7|between 0 and 4"
    ):
        trainer.train()
    readable(tmp_path)


def test_checkpoint_of_something_else(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=2).train()
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    before = weights(other)
    with pytest.raises(CheckpointError, match=r"of another model than Sequential: it has 0\.bias.*; it holds 1\."):
        make_trainer(tmp_path, other).train(resume=True)
    assert same(weights(other), before)
    wider = make_model()
    wider[5] = nn.Linear(64, 6)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"holds 5\.\w+ as \[5(, 64)?\], not \[6"):
        make_trainer(tmp_path, wider).train(resume=True)
    with pytest.raises(CheckpointError, match="made with AdamW"):
        make_trainer(tmp_path, optimizer="SGD").train(resume=True)
    with pytest.raises(TrainingError, match=r"holds the checkpoints of a run: go on with train\(resume=True\)"):
        make_trainer(tmp_path).train()
    with pytest.raises(CheckpointError, match="is no checkpoint and holds none"):
        make_trainer(tmp_path / "elsewhere").train(resume=True)
    file = tmp_path / "checkpoints" / "step-00000002" / checkpoint.MODEL
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"cannot read .*{checkpoint.MODEL}"):
        make_trainer(tmp_path).train(resume=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"bias": torch.zeros(2).double()}, r"holds bias as torch\.float64, not torch\.float32"),
        ({"more": torch.zeros(1)}, "it has more$"),
    ],
)
def test_weights_that_are_not_quite_the_models(tmp_path: Path, changed: dict[str, torch.Tensor], told: str) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = nn.Linear(3, 2)
    before = weights(model)
    save_file({**model.state_dict(), "bias": torch.ones(2), **changed}, tmp_path / checkpoint.MODEL)
    (tmp_path / checkpoint.NOTE).write_text("{}")
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load_weights(model, tmp_path)
    assert same(weights(model), before)


@pytest.mark.parametrize("told", [2, "1", None])
def test_a_format_to_come(tmp_path: Path, told: Any) -> None:
    make_checkpoint(tmp_path)
    file = checkpoint.find_checkpoint(tmp_path) / checkpoint.NOTE
    assert json.loads(file.read_text())["format"] == checkpoint.FORMAT
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": told}))
    with pytest.raises(CheckpointError, match=f"its format is {told!r}, .* use the version of lfpgraph that wrote it"):
        plain_trainer(tmp_path).train(resume=True)


def test_a_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes the working directory in the midst of a run."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    trainer = plain_trainer(Path("run"), save_every=3, loggers=("jsonl",))
    for record in trainer.iterate():
        if record["step"] == 1:
            monkeypatch.chdir("elsewhere")
    assert not list(Path.cwd().iterdir())
    assert {"log.jsonl", "step-00000003", "step-00000006"} <= {path.name for path in (tmp_path / "run").rglob("*")}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are of Unix")
def test_full_disk(tmp_path: Path) -> None:
    """A write that fails half-way leaves one line and the checkpoints before."""
    process = start(run_on_a_full_disk, tmp_path)
    process.join()
    assert process.exitcode == 3
    told = (tmp_path / "error.txt").read_text()
    assert told.startswith("cannot write the checkpoint") and told.count("\n") == 1
    assert "File too large" in told and "step-00000004" in told
    assert [path.name for path in readable(tmp_path)] == ["step-00000002", "step-00000004"]
    assert not list((tmp_path / "checkpoints").glob(".part*"))
    rest = make_trainer(tmp_path, save_every=2, eval_data=None, metrics=[])
    assert rest.train(resume=True).steps == 12


def test_log_on_a_full_disk(tmp_path: Path) -> None:
    class Full:
        def write(self, record: Any) -> None:
            if record["step"] == 4:
                raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    with pytest.raises(CheckpointError, match="cannot write the log: No space left on device; .*step-00000003"):
        make_trainer(tmp_path, loggers=[Full()]).train()
    readable(tmp_path)


def test_death_at_every_moment_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before each call that changes the disk, in turn: what is there can be read, and is the newest."""

    class Death(BaseException):
        pass

    model, left = make_model(), [0]
    write = lambda step: checkpoint.write_checkpoint(  # noqa: E731
        tmp_path / checkpoint.step_name(step), model, {"step": step}, {"step": step}
    )
    write(1)
    write(2)

    def mortal(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Death
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (safetensors.torch, "save_file"),
        (shutil, "rmtree"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    deaths = 0
    for turn in range(100):
        moment, step = turn // 2, 2 + turn % 2
        newest = checkpoint.latest(tmp_path)
        assert newest is not None and checkpoint.read_state(newest)["step"] == int(newest.name[-8:])
        left[0] = moment
        try:
            write(step)
            checkpoint.prune(tmp_path, 1, None)
            if moment > 40:
                break
        except Death:
            deaths += 1
        left[0] = 1000
        found = checkpoint.latest(tmp_path)
        assert found is not None and found.name[:13] >= newest.name[:13]  # nothing was lost
        checkpoint.load_weights(make_model(seed=1), checkpoint.latest(tmp_path) or tmp_path)
    assert deaths >= 10


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_killed_twice(tmp_path: Path) -> None:
    killed(tmp_path, 2, 15)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
@pytest.mark.parametrize("seed", range(10))
def test_killed_twenty_times(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, 20, 30, seed)
