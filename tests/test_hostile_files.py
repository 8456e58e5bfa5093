"""Files of every kind that are none, or say of themselves what cannot be: one line of ours, soon, and nothing of them runs."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import shutil
import socket
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lfpgraph.writing import write_text

from .support.helpers import enter, run_cli

pytestmark = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="files that are devices are of Unix")

SOURCE = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))\n"
EXPLAIN = ["explain", "own:build", "--no-check", "--input"]
EXPORT = ["export", "own:build", "x.onnx", "--shape", "4", "--weights"]
READERS = {
    "npy": EXPLAIN, "png": EXPLAIN, "txt": EXPLAIN, "npz": EXPORT, "safetensors": EXPORT, "onnx": ["coverage"],
    "pt2": ["coverage"], "json": ["coverage"],
}  # fmt: skip


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


FILES: dict[str, Callable[[Path], object]] = {
    "a link to itself": lambda path: os.symlink(path.name, path),
    "a link to nothing": lambda path: os.symlink("/nowhere/x", path),
    "a link to /dev/zero": lambda path: os.symlink("/dev/zero", path),
    "a link to its own memory": lambda path: os.symlink("/proc/self/mem", path),
    "a folder": Path.mkdir,
    "a socket": _socket,
    "no bytes": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
}


def _npy(shape: str, descr: str = "'<f4'", data: bytes = bytes(16), version: tuple[int, int] = (3, 0)) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<I", len(header) + 1) + header + b"\n" + data


ARRAYS = {
    "a version to come": _npy("(1, 4)", version=(9, 9)),
    "sizes below zero": _npy("(-1, -4)"),
    "digits of another script": _npy("(\uff11, \uff14)"),
    "infinitely many": _npy("(1e400, 4)"),
    "a shape of 3,000 brackets": _npy("(" * 3000 + ")" * 3000),
    "a header that calls": _npy("(1, 4)", "__import__('pathlib').Path('mark').touch()"),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xffx",
    "points in time": _npy("(1, 4)", "'<M8[s]'", bytes(32)),
    "records": _npy("(1, 4)", "[('a', '<f4')]"),
    "objects in records": _npy("(1, 4)", "[('a', [('b', 'O')])]", bytes(32)),
    "text": _npy("(1, 4)", "'<U9'", bytes(144)),
    "fewer numbers than it says": _npy("(1, 4)", data=bytes(15)),
    "infinity": _npy("(1, 4)", data=np.array([1, np.inf, 0, 1], "<f4").tobytes()),
    "NaN": _npy("(1, 4)", data=np.array([1, np.nan, 0, 1], "<f4").tobytes()),
}
TINY = (
    '{"model_type": "bert", "hidden_size": %s, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 16, "vocab_size": 30}'
)
CONFIGS = {
    "infinitely wide": TINY % "1e400",
    "a size that is no number": TINY % "NaN",
    "less than any size": TINY % "-Infinity",
    "half a column": TINY % "16.5",
    "digits of another script": TINY % '"\uff11\uff16"',
    "zeros behind it": TINY % "16" + "\0" * 100,
    "two of them": (TINY % "16") * 2,
    "nothing": "null",
    "a million digits": "1" * 10**6,
    "3,000 parts in each other": '{"a":' * 3000 + "1" + "}" * 3000,
}


def _archive(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


PROGRAMS = {
    "names up the tree": _archive([("../../x", b"1"), ("/etc/x", b"1")]),
    "10,000 entries": _archive([(f"m/{i}", b"") for i in range(10_000)]),
    "cut": _archive([("m/models/model.json", b"{}" * 1000)])[:-30],
    "sizes of 4 GB": _archive([("m/x", b"1")]).replace(b"PK\x05\x06", b"PK\x05\x06\xff\xff\xff\xff", 1),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(SOURCE)
    enter(monkeypatch, tmp_path, "own")
    return tmp_path


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    assert run_cli(monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    line = error[error.rfind("lfpgraph: ") :]
    assert line.startswith("lfpgraph: ") and line.count("\n") == 1 and len(line) < 1200, error
    assert not Path("mark").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", FILES)
def test_what_is_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Given for each kind of file that is read; noise and nothing are a text."""
    for kind, call in READERS.items():
        if not (kind == "txt" and what in ("noise", "no bytes")):
            FILES[what](folder / f"a.{kind}")
            refused(monkeypatch, capsys, *call, f"a.{kind}")


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str) -> None:
    (folder / "a.npy").write_bytes(ARRAYS[what])
    refused(monkeypatch, capsys, *EXPLAIN, "a.npy")


@pytest.mark.parametrize("what", CONFIGS)
def test_configurations(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    pytest.importorskip("transformers")
    (folder / "config.json").write_text(CONFIGS[what])
    refused(monkeypatch, capsys, "coverage", str(folder))


@pytest.mark.parametrize("what", PROGRAMS)
def test_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str) -> None:
    (folder / "a.pt2").write_bytes(PROGRAMS[what])
    refused(monkeypatch, capsys, "coverage", "a.pt2")


PARTS = ("a link to itself", "a link to /dev/zero", "a folder", "no bytes", "noise", "a pipe")


@pytest.mark.parametrize("what", PARTS)
def test_parts_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The run is left as it was; where the note is none, there is no checkpoint, which is said."""
    pytest.importorskip("accelerate")
    pytest.importorskip("safetensors.torch")
    from lfpgraph.errors import CheckpointError
    from lfpgraph.training import checkpoint

    from .support.tampered import make_checkpoint, plain_trainer
    from .support.trainer_run import same, weights

    make_checkpoint(tmp_path / "good")
    trainer = plain_trainer(tmp_path / "run")
    before = weights(trainer.model)
    for name in (checkpoint.MODEL, checkpoint.TRAINING, checkpoint.NOTE):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "run")
        part = tmp_path / "run" / "checkpoints" / "step-00000003" / name
        part.unlink()
        (os.mkfifo if what == "a pipe" else FILES[what])(part)
        with pytest.raises(CheckpointError) as told:
            next(trainer.iterate(resume=True))
        assert "\n" not in str(told.value) and same(before, weights(trainer.model))


@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_what_is_no_log_changes_no_run(tmp_path: Path, what: str) -> None:
    """It is refused before the checkpoint's weights are the model's."""
    pytest.importorskip("accelerate")
    from lfpgraph.errors import CheckpointError

    from .support.tampered import make_checkpoint, plain_trainer
    from .support.trainer_run import same, weights

    make_checkpoint(tmp_path)
    (Path.mkdir if what == "a folder" else os.mkfifo)(tmp_path / "log.jsonl")
    trainer = plain_trainer(tmp_path, loggers=("jsonl",))
    before = weights(trainer.model)
    with pytest.raises(CheckpointError, match="log"):
        next(trainer.iterate(resume=True))
    assert same(before, weights(trainer.model))


@pytest.mark.parametrize("name", ["a\0b", "a\udcff"])
def test_folders_of_a_run_that_no_one_can_read_again(tmp_path: Path, name: str) -> None:
    """They are refused before the first step, not at the first checkpoint or when the run is taken up."""
    pytest.importorskip("accelerate")
    from lfpgraph.errors import TrainingError

    from .support.tampered import make_checkpoint

    with pytest.raises(TrainingError, match="give another folder") as told:
        make_checkpoint(Path(f"{tmp_path}/{name}"))
    str(told.value).encode()
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def _files_of_at_most(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """All of the files that go together; and one line says so, although safetensors has an error of its own for it."""
    pytest.importorskip("onnxruntime")
    from lfpgraph.errors import OnnxError
    from lfpgraph.onnx import OrtTrainer, export, export_training_step

    model, x = nn.Linear(4, 5000), torch.randn(6, 4)
    step = export_training_step(model, x, tmp_path / "deep" / "step.onnx", "softmax", parameters="outside")
    trainer = OrtTrainer(step)
    trainer.save(step.with_name("own.safetensors"))
    export(model, step.with_name("model.onnx"), x)
    narrow = nn.Linear(4, 9)
    beside = export_training_step(narrow, x, step.with_name("narrow.onnx"), parameters="outside")
    before = {file.name: file.read_bytes() for file in step.parent.iterdir()}
    with torch.no_grad():
        narrow.weight.zero_()
    for most, write in (
        (20_000, lambda: trainer.save(step.with_name("own.safetensors"))),
        (20_000, lambda: export_training_step(model, x, step, "softmax", parameters="outside")),
        (20_000, lambda: export(model, step.with_name("model.onnx"), x)),
        (len(before[beside.name]) - 99, lambda: export_training_step(narrow, x, beside, parameters="outside")),
    ):
        with _files_of_at_most(most), pytest.raises(OnnxError, match="cannot write"):
            write()
    assert {file.name: file.read_bytes() for file in step.parent.iterdir()} == before


def test_reports_that_do_not_fit_on_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of before stay whole, behind a link as well, and with the rights that they had."""
    np.save(folder / "row.npy", np.ones((1, 4), np.float32))
    (folder / "told").mkdir()
    os.symlink("told/own.html", "link.html")
    calls = [
        ["coverage", "own:build", "--html", "c.html", "--json", "c.json"],
        ["coverage", "own:build", "--html", "link.html"],
        *(["graph", "own:build", "--out", f"g{kind}"] for kind in (".dot", ".graphml", ".json", ".html")),
        ["explain", "own:build", "--no-check", "--input", "row.npy", "--out", "e.html"],
    ]
    for call in calls:
        assert run_cli(monkeypatch, *call) == 0
    os.chmod("c.json", 0o600)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    capsys.readouterr()
    for call in calls:
        with _files_of_at_most(500):
            refused(monkeypatch, capsys, *call)
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before
    assert run_cli(monkeypatch, *calls[0]) == 0 and os.stat("c.json").st_mode & 0o777 == 0o600
    assert Path("link.html").is_symlink() and not list(folder.rglob(".new-*"))


@pytest.mark.parametrize("told", [errno.EROFS, errno.EBUSY])
def test_files_beside_which_none_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int) -> None:
    """In a folder that takes no other file, or mounted by itself as a container's files are: they are written to."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(told, os.strerror(told))

    file = tmp_path / "own.html"
    file.write_text("before")
    place = file.stat().st_ino
    monkeypatch.setattr(*(tempfile, "mkdtemp") if told == errno.EROFS else (os, "replace"), refuse)
    write_text(file, "now")
    assert file.read_text() == "now" and file.stat().st_ino == place and list(tmp_path.iterdir()) == [file]
    if told == errno.EROFS:
        with pytest.raises(OSError):
            write_text(tmp_path / "new.html", "now")
