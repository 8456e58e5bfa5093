"""Nothing lost: a checkpoint is taken whole or refused, one run to a folder, and logs keep what they held."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lfpgraph.errors import CheckpointError, DataError, TrainingError
from lfpgraph.training.checkpoint import MODEL, NOTE, TRAINING, checked_weights, find_checkpoint, read_state
from lfpgraph.training.logs import JsonLines
from lfpgraph.training.resuming.lock import locked
from lfpgraph.training.resuming.tree import save_tree

from .support.processes import start
from .support.trainer_run import make_data, make_model, same, weights

pytest.importorskip("accelerate")
from .support.tampered import make_checkpoint, plain_trainer, tamper  # noqa: E402


def test_changed_checkpoints_are_taken_whole_or_refused(tmp_path: Path) -> None:
    seen = tamper(100, 3, tmp_path)
    assert seen["refused"] > 40 and seen["taken"] > 10


@pytest.mark.slow
def test_five_thousand_changed_checkpoints(tmp_path: Path) -> None:
    tamper(5000, 1, tmp_path)


def first_of(state: Any) -> Any:
    """What the optimizer remembers of its first parameter."""
    return state["optimizer"]["state"][0]


FORGED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lr infinite": (lambda s: s["optimizer"]["param_groups"][0].update(lr=math.inf), "optimizer.lr is inf"),
    "lr negative": (lambda s: s["optimizer"]["param_groups"][0].update(lr=-1.0), "Invalid learning rate"),
    "betas": (lambda s: s["optimizer"]["param_groups"][0].update(betas=(5.0, 5.0)), "Invalid beta parameter"),
    "steps below zero": (lambda s: first_of(s).update(step=torch.tensor(-5.0)), "step of parameter 0"),
    "average of NaN": (lambda s: first_of(s)["exp_avg"].fill_(math.nan), "exp_avg of parameter 0"),
    "average of whole numbers": (
        lambda s: first_of(s).update(exp_avg=first_of(s)["exp_avg"].long()),
        "torch.int64, not",
    ),
    "an optimizer for the scheduler": (lambda s: s["scheduler"].update(optimizer="x"), "a value 'optimizer'"),
    "a batch beyond the epoch": (lambda s: s["position"].update(batch=10**30), "beyond the end"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_with_a_digest_that_fits(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path)
    path = find_checkpoint(tmp_path)
    state, note = read_state(path), json.loads((path / NOTE).read_text())
    FORGED[name][0](state)
    save_tree(path / TRAINING, state)
    note["sha256"][TRAINING] = hashlib.sha256((path / TRAINING).read_bytes()).hexdigest()
    (path / NOTE).write_text(json.dumps(note))
    with pytest.raises(CheckpointError, match=FORGED[name][1]):
        plain_trainer(tmp_path).train(resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names are of Unix")
@pytest.mark.parametrize("name", [MODEL, TRAINING, "log.jsonl"])
def test_a_pipe_in_place_of_a_file(tmp_path: Path, name: str) -> None:
    """Reading it would never end."""
    make_checkpoint(tmp_path)
    file = (tmp_path if name == "log.jsonl" else find_checkpoint(tmp_path)) / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="no regular file"):
        plain_trainer(tmp_path, loggers=("jsonl",)).train(resume=True)


def swapped() -> nn.Module:
    """The same parameters, in another order."""
    model = make_model()
    model.register_module("0", model._modules.pop("0"))
    return model


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 16}, "batch_size=8, and now there is batch_size=16"),
        ({"batch_size": 4}, "batch_size=8"),
        ({"train_data": make_data(20)}, "rows=44, and now there is rows=20"),
        ({"train_data": make_data(200)}, "rows=44"),
        ({"seed": 1}, "seed=0, and now there is seed=1"),
        ({"accumulate": 2}, "accumulate=1"),
        ({"epochs": 4}, "schedule is one for total_steps=6, and this run's for 24"),
        ({"max_steps": 2}, "schedule is one for total_steps=6|beyond the end"),
        ({"scheduler": None}, "another scheduler"),
        ({"optimizer": lambda p: torch.optim.AdamW([p[0:2], p[2:]][0] + p[2:][::-1], lr=1e-2)}, "another order"),
    ],
)
def test_another_run_does_not_go_on(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    make_checkpoint(tmp_path)
    trainer = plain_trainer(tmp_path, model=make_model(seed=5), **changed)
    before, moments = weights(trainer.model), len(trainer.optimizer.state)
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume=True)
    assert same(weights(trainer.model), before) and len(trainer.optimizer.state) == moments
    assert plain_trainer(tmp_path).train(resume=True).steps == 6


def test_the_end_is_not_behind_the_start(tmp_path: Path) -> None:
    plain_trainer(tmp_path, scheduler=None).train()
    with pytest.raises(CheckpointError, match="beyond the end of this run"):
        plain_trainer(tmp_path, scheduler=None, max_steps=4).train(resume=True)
    outcome = plain_trainer(tmp_path, scheduler=None).train(resume=True)
    assert outcome.reason == "finished" and outcome.steps == 6
    assert plain_trainer(tmp_path, scheduler=None, epochs=2).train(resume=True).steps == 12


def test_a_loader_that_has_changed(tmp_path: Path) -> None:
    def loader(size: int) -> Any:
        return DataLoader(TensorDataset(*make_data()), batch_size=size)

    plain_trainer(tmp_path / "a", train_data=loader(8), max_steps=3, scheduler=None).train()
    with pytest.raises(CheckpointError, match="batch_size=8, and now there is batch_size=4"):
        plain_trainer(tmp_path / "a", train_data=loader(4), scheduler=None).train(resume=True)

    class Stream(IterableDataset):
        def __init__(self, count: int) -> None:
            self.count = count

        def __iter__(self) -> Any:
            return iter([(a, b) for a, b in zip(*make_data(self.count))])

    plain_trainer(tmp_path / "b", train_data=Stream(40), max_steps=3, scheduler=None).train()
    with pytest.raises(DataError, match="ended after 1 batches, of which 3 were done"):
        plain_trainer(tmp_path / "b", train_data=Stream(8), max_steps=6, scheduler=None).train(resume=True)


def test_going_back_to_an_earlier_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What came after it is put aside, not removed, and is not what the next resumption takes."""
    plain_trainer(tmp_path, keep=9).train()
    folder = tmp_path / "checkpoints"
    trainer = plain_trainer(tmp_path, keep=1)
    for record in trainer.iterate(resume=folder / "step-00000002"):
        if record["step"] == 4:
            break
    names = {path.name for path in folder.iterdir()}
    assert names == {"step-00000004", *(f"left-step-0000000{n}" for n in (3, 4, 5, 6))}
    assert "step-00000006 is later than step-00000002" in caplog.text
    with pytest.raises(TrainingError, match="none of them: give another folder"):
        make_checkpoint(tmp_path / "other")
        plain_trainer(tmp_path).train(resume=tmp_path / "other")


def hold(folder: Path, ready: Any, end: Any) -> None:
    """A run that stands still in its first step."""
    for _ in plain_trainer(folder).iterate():
        ready.set()
        end.wait(60)
        break


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_one_run_to_a_folder(tmp_path: Path) -> None:
    """Of another process or of this one; and a process that was killed holds nothing."""
    steps = plain_trainer(tmp_path).iterate()
    next(steps)
    with pytest.raises(TrainingError, match="another run of this process is in"):
        plain_trainer(tmp_path).train(resume="auto")
    steps.close()
    context = start.__globals__["_SERVER"]
    ready, end = context.Event(), context.Event()
    process = start(hold, tmp_path / "b", ready, end)
    assert ready.wait(60)
    with pytest.raises(TrainingError, match=rf"another run \(process {process.pid} on .*\) is in .*b:"):
        plain_trainer(tmp_path / "b").train(resume="auto")
    process.kill()
    process.join()
    assert plain_trainer(tmp_path / "b").train(resume="auto").steps == 6
    assert plain_trainer(tmp_path / "b").train(resume="auto").reason == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes with names are of Unix")
@pytest.mark.parametrize("name", [".lock", ".log.jsonl.part", "log.jsonl.odd"])
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe"])
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, name: str, kind: str) -> None:
    """A folder from elsewhere may hold them where a run writes: nothing outside changes, and nothing waits."""
    folder, secret = tmp_path / "run", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("mine")
    (folder / "log.jsonl").write_text("torn")
    make = {"symlink": Path.symlink_to, "hardlink": Path.hardlink_to, "pipe": lambda file, _: os.mkfifo(file)}[kind]
    make(folder / name, secret)
    if name.endswith(".part"):
        JsonLines(folder / "log.jsonl", 3).close()
    else:
        with pytest.raises((TrainingError, OSError), match="link|symbolic"):
            with locked(folder):
                JsonLines(folder / "log.jsonl", 3).close()
    assert secret.read_text() == "mine" and (folder / "log.jsonl").is_file()


TORN = (
    '{"step": 2, "epo',
    "not a record",
    "[1, 2]",
    "17",
    '{"epoch": 1}',
    '{"step": "x"}',
    '{"step": null}',
    "",
    "[" * 9999,
)


def test_logs_lose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines cut short or of somebody else are put aside; the others stay, before and after them."""
    make_checkpoint(tmp_path)  # at step 3
    records = [{"step": n, "epoch": 1, "loss": 0.5} for n in (1, 2, 3, 4)]
    lines = [json.dumps(record) for record in records]
    rows = ["step,epoch,loss", *(f"{r['step']},1,0.5" for r in records)]
    odd = [b"\xff\xfe\x00", *(text.encode() for text in TORN)]
    wrong = [b'"', b"1", b"x,y,z", b'2,"1', b"1,1,1,1", b"\xff,\x00,3", b"9" * 5000 + b",1,1"]
    mixed = [lines[0].encode(), *odd, lines[1].encode(), lines[2].encode(), lines[3].encode(), b'{"step": 3, "ep']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(mixed))
    table = [rows[0].encode(), rows[1].encode(), *wrong, *(row.encode() for row in rows[2:]), b"4,1"]
    (tmp_path / "log.csv").write_bytes(b"\n".join(table))
    plain_trainer(tmp_path, loggers=("jsonl", "csv")).train(resume=True)
    kept = (tmp_path / "log.jsonl").read_text().splitlines()
    assert kept[:3] == lines[:3] and [json.loads(line)["step"] for line in kept] == [1, 2, 3, 4, 5, 6]
    table_kept = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table_kept] == ["step", "1", "2", "3", "4", "5", "6"]
    aside = (tmp_path / "log.jsonl.odd").read_bytes().split(b"\n")
    assert aside[:-1] == [line for line in odd if line.strip()] + [b'{"step": 3, "ep']
    assert (tmp_path / "log.csv.odd").read_bytes().split(b"\n")[:-1] == [*wrong, b"4,1"]
    assert "11 lines" not in caplog.text and "are kept in log.jsonl.odd" in caplog.text


def test_the_log_of_a_run_that_was_not_saved(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    plain_trainer(tmp_path, loggers=("jsonl",)).train()
    assert (tmp_path / "log.jsonl.1").read_text() == '{"step": 1}\n'
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6
    other = tmp_path / "other"
    (other / "log.csv").mkdir(parents=True)
    (other / "log.csv" / "x").touch()
    plain_trainer(other, loggers=("csv",), max_steps=2).train()
    assert (other / "log.csv.1" / "x").exists()
    (other / "log.csv").unlink()
    (other / "log.csv").mkdir()
    with pytest.raises(CheckpointError, match="cannot write the log"):
        plain_trainer(other, loggers=("csv",), max_steps=2).train(resume=True)


def test_formulas_in_a_table(tmp_path: Path) -> None:
    from lfpgraph.training.logs import CsvLog

    log = CsvLog(tmp_path / "log.csv", None)
    log.write(
        {"step": 1, "=cmd|'/c calc'!A1": "@sum", "loss": -0.5, "note": "-1e-3", "text": "a\n=b", "more": "+1+cmd"}
    )
    head, row = (tmp_path / "log.csv").read_text().splitlines()
    assert head == "step,'=cmd|'/c calc'!A1,loss,note,text,more" and row == "1,'@sum,-0.5,-1e-3,a =b,'+1+cmd"
    again = CsvLog(tmp_path / "log.csv", 1)
    assert (tmp_path / "log.csv").read_text().splitlines() == [head, row] and len(again.rows) == 1


def test_a_checkpoint_half_way_of_being_replaced(tmp_path: Path) -> None:
    """The new one stands beside the old one: it is found, read, and takes its place at the next write."""
    make_checkpoint(tmp_path)
    folder = tmp_path / "checkpoints"
    os.rename(folder / "step-00000003", folder / "step-00000003-00000003")
    trainer = plain_trainer(tmp_path)
    assert trainer.train(resume=True).steps == 6
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize(("name", "read"), [(MODEL, partial(checked_weights, make_model())), (TRAINING, read_state)])
def test_a_file_that_is_not_the_one_written(tmp_path: Path, name: str, read: Any) -> None:
    """One bit of a number differs: a reader of the file alone cannot know."""
    make_checkpoint(tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    read(checkpoint)
    held = bytearray((checkpoint / name).read_bytes())
    held[-1] ^= 1
    (checkpoint / name).write_bytes(held)
    with pytest.raises(CheckpointError, match="its digest is another"):
        read(checkpoint)
