"""Command lines that cannot work: one line that says why, exit status 1 (2 where the call itself is wrong), and soon."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from .support.helpers import enter, run_cli

SOURCE = """
import sys
import torch
from torch import nn
from torch.nn import functional as F

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

def data():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    return (x, x[:, :3].argmax(-1)), (x, x[:, :3].argmax(-1))

def wide():
    (x, y), _ = data()
    return (x.repeat(1, 2), y), (x, y)

def labels():
    (x, y), test = data()
    return (x, y + 7), test

def nans():
    (x, y), test = data()
    return (x * float("nan"), y), test

def leaves():
    sys.exit("no model today")

class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")

def mute():
    raise Mute

def long():
    raise ValueError("word\\n" * 100_000)

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if self.training:
            raise KeyError("weather")
        return self.layer(x)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return {"a": self.layer(x), "b": 1}
"""
TRAIN = ["train", "own:build", "own:data"]
EXPLAIN = ["explain", "own:build", "--input"]

# What is given, the exit status, and a word of the line.
CALLS: dict[str, tuple[list[str], int, str]] = {
    "nothing": ([], 2, "Missing command"),
    "no such command": (["trian"], 2, "trian"),
    "no such option": ([*TRAIN, "--epoch", "3"], 2, "--epoch"),
    "an argument too few": (["train", "own:build"], 2, "Missing argument"),
    "an argument too many": ([*TRAIN, "more"], 2, "more"),
    "an option without its value": ([*TRAIN, "--lr"], 2, "--lr"),
    "no input": (["explain", "own:build"], 2, "--input"),
    "markup": (["[/red]\x1b[2J"], 2, "[/red]"),
    "a rate that is no number": ([*TRAIN, "--lr", "nan"], 2, "--lr"),
    "a rate without end": ([*TRAIN, "--lr", "inf"], 2, "not a finite number"),
    "a rate below zero": ([*TRAIN, "--lr", "-1"], 2, "--lr"),
    "a norm below zero": ([*TRAIN, "--clip", "-1"], 2, "--clip"),
    "an epsilon that is no number": ([*TRAIN, "--epsilon", "nan"], 2, "--epsilon"),
    "no epochs": ([*TRAIN, "--epochs", "0"], 2, "--epochs"),
    "a seed beyond all": ([*TRAIN, "--seed", str(2**70)], 2, "--seed"),
    "a seed below zero": ([*TRAIN, "--seed", "-1"], 2, "--seed"),
    "a million threads": ([*TRAIN, "--threads", "1000000"], 2, "--threads"),
    "the same file twice": ([*TRAIN, "--out", "x", "--json", "./x"], 1, "twice"),
    "a folder in place of a file": ([*TRAIN, "--json", "."], 1, "folder"),
    "a file in place of a folder": ([*TRAIN, "--save", "own.py/w"], 1, "own.py/w"),
    "a file that no one may write": ([*TRAIN, "--json", "/proc/version"], 1, "/proc/version"),
    "a name with a zero": ([*TRAIN, "--json", "a\0b"], 2, "a\\x00b"),
    "a name too long": ([*TRAIN, "--json", "x" * 5000], 1, "too long"),
    "inputs of another width": (["train", "own:build", "own:wide"], 1, "shapes"),
    "labels out of range": (["train", "own:build", "own:labels"], 1, "labels"),
    "inputs of NaN": (["train", "own:build", "own:nans"], 1, "NaN"),
    "a module that fails": (["train", "own:Own", "own:data"], 1, "own.py:46"),
    "an error that cannot be said": (["train", "own:mute", "own:data"], 1, "raises ValueError"),
    "an error without end": (["train", "own:long", "own:data"], 1, "word word"),
    "outputs of another kind": (["train", "own:Two", "own:data"], 1, "dict"),
    "a script that ends Python": (["train", "own:leaves", "own:data"], 1, "no model today"),
    "a module above all": (["train", ".own:build", "own:data"], 1, ".own"),
    "compared at rates below zero": (["compare", *TRAIN[1:], "--rates", "-1"], 1, "above zero"),
    "compared at no numbers": (["compare", *TRAIN[1:], "--rates", "nan,1"], 1, "above zero"),
    "compared for ever": (["compare", *TRAIN[1:], "--seconds", "inf"], 2, "finite"),
    "compared in no way": (["compare", *TRAIN[1:], "--ways", ","], 1, "''"),
    "compared on wrong labels": (["compare", "own:build", "own:labels", "--steps", "2"], 1, "out of bounds"),
    "an experiment without end": (["reproduce", "regression", "--effort", "inf"], 2, "finite"),
    "on no such device": (["reproduce", "regression", "--device", "abacus"], 1, "abacus"),
    "runs in a pipe": (["reproduce", "regression", "--runs", "pipe.npy"], 1, "pipe"),
    "runs in a folder": (["reproduce", "regression", "--runs", "."], 1, "folder"),
    "a target of nothing": (["coverage", ""], 1, "config.json"),
    "a target with a zero": (["coverage", "\0.onnx"], 1, "\\x00"),
    "a long target": (["coverage", "x" * 5000], 1, "too long"),
    "a pipe for a model": (["coverage", "pipe.onnx"], 1, "pipe.onnx"),
    "a pipe for a configuration": (["coverage", "pipe.json"], 1, "pipe.json"),
    "a pipe for a program": (["coverage", "pipe.pt2"], 1, "pipe.pt2"),
    "shapes of nothing": (["check", "own:build", "--shape", "0"], 1, "--shape"),
    "shapes below zero": (["check", "own:build", "--shape", "-4"], 1, "--shape"),
    "a shape larger than memory": (["check", "own:build", "--shape", "9999999999999"], 1, "--shape"),
    "a shape that does not fit": (["check", "own:build", "--shape", "5"], 1, "shapes"),
    "a pipe for an array": ([*EXPLAIN, "pipe.npy"], 1, "no such file"),
    "an array of another width": ([*EXPLAIN, "wide.npy"], 1, "shapes"),
    "an array of nothing": ([*EXPLAIN, "empty.npy"], 1, "numbers are needed"),
    "an array that says it is huge": ([*EXPLAIN, "huge.npy"], 1, "cannot be read"),
    "an array of objects": ([*EXPLAIN, "objects.npy"], 1, "cannot be read"),
    "an archive of arrays": ([*EXPLAIN, "archive.npy"], 1, "archive of arrays"),
    "an array of long numbers": ([*EXPLAIN, "long.npy"], 1, "numbers are needed"),
    "an array without a batch": ([*EXPLAIN, "flat.npy"], 1, "[1, length]"),
    "an array of too many dimensions": ([*EXPLAIN, "many.npy"], 1, "[1, height, width]"),
    "a row for an image": ([*EXPLAIN, "row.npy", "--show", "image"], 1, "[1, height, width]"),
    "an image of 13,000 by 13,000": ([*EXPLAIN, "large.png"], 1, "bomb"),
    "an image of nothing": ([*EXPLAIN, "torn.png"], 1, "cannot be read"),
    "a class that is not there": ([*EXPLAIN, "row.npy", "--target", "99"], 1, "99"),
    "a class beyond all": ([*EXPLAIN, "row.npy", "--target", str(10**30)], 1, "1000000"),
    "divided by zero": ([*EXPLAIN, "row.npy", "--std", "0"], 2, "--std"),
    "an image of a mile": ([*EXPLAIN, "torn.png", "--size", "1000000"], 2, "--size"),
    "weights of something else": (["export", "own:build", "x.onnx", "--weights", "own.py", "--shape", "4"], 1, "own.py"),
    "a pipe for weights": (["export", "own:build", "x.onnx", "--weights", "pipe.npy", "--shape", "4"], 1, "no regular"),
    "weights of complex numbers": (
        ["export", "own:build", "x.onnx", "--weights", "complex.safetensors", "--shape", "4"], 1, "torch.complex64"),
    "no parameter of this name": (["export", "own:build", "x.onnx", "--trainable", "z", "--shape", "4"], 1, "'z'"),
    "an unknown kind": (["export", "own:build", "x.onnx", "--what", "x"], 1, "attribution"),
}  # fmt: skip


def _png_of(side: int) -> bytes:
    """The head of a picture, which says how large it is."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(SOURCE)
    np.save(tmp_path / "row.npy", np.ones((1, 4), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((1, 5), np.float32))
    np.save(tmp_path / "empty.npy", np.ones((0, 4), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(4, np.float32))
    np.save(tmp_path / "many.npy", np.ones((1,) * 40 + (4,), np.float32))
    np.save(tmp_path / "long.npy", np.ones((1, 4), np.longdouble if np.longdouble(1).itemsize > 8 else np.complex64))
    np.savez(tmp_path / "archive.npz", row=np.ones((1, 4)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    held = (tmp_path / "row.npy").read_bytes()
    (tmp_path / "huge.npy").write_bytes(held.replace(b"(1, 4)", b"(9999999999999, 4)", 1)[: len(held)])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    (tmp_path / "large.png").write_bytes(_png_of(13_000))
    turned = {name: value.to(torch.complex64) for name, value in torch.nn.Linear(4, 8).state_dict(prefix="0.").items()}
    safetensors.torch.save_file(turned, tmp_path / "complex.safetensors")
    for kind in ("onnx", "json", "pt2", "npy"):
        os.mkfifo(tmp_path / f"pipe.{kind}")
    enter(monkeypatch, tmp_path, "own")
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names are of Unix")
@pytest.mark.parametrize("name", CALLS)
def test_calls(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, status, word = CALLS[name]
    before = sorted(path.name for path in folder.iterdir())
    assert run_cli(monkeypatch, *arguments) == status
    error = capsys.readouterr().err
    line = error[error.rfind("lfpgraph: ") :]
    assert word in line and line.count("\n") == 1 and len(line) < 1200 and "\x1b[2J" not in error, error
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_an_array_of_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers with their bytes the other way round."""
    np.save(folder / "turned.npy", np.ones((1, 4), ">f4"))
    found = []
    for name in ("row", "turned"):
        call = [*EXPLAIN, f"{name}.npy", "--no-check", "--json", f"{name}.json"]
        assert run_cli(monkeypatch, *call) == 0
        found.append(np.array(json.loads((folder / f"{name}.json").read_text())["relevance"]).shape)
    assert found == [(4,), (4,)]


def test_a_file_of_runs_that_was_torn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no run is passed over and stays; the next one begins a line of its own."""
    call = ["reproduce", "regression", "--seeds", "1", "--effort", "0.01", "--out", "o", "--runs", "runs.jsonl"]
    torn = ["17", "[" * 9999, '{"run": 1}', "\xff", '{"run": {"seed": 0}, "fou']
    (folder / "runs.jsonl").write_text("\n".join(torn))
    assert run_cli(monkeypatch, *call) == 0
    lines = (folder / "runs.jsonl").read_text().splitlines()
    assert lines[:5] == torn and len(lines) > 8 and all("found" in json.loads(line) for line in lines[5:])
    assert "5 lines are no runs" in caplog.text
    assert run_cli(monkeypatch, *call) == 0 and len((folder / "runs.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is of Linux")
def test_a_full_disk_behind_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in (["--version"], ["zoo"]):  # a line, and more than the buffer holds
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            assert run_cli(patch, *call) == 1
        assert capsys.readouterr().err == "lfpgraph: cannot read or write: No space left on device\n"
    assert run_cli(monkeypatch, *TRAIN, "--json", "/dev/full", "--epochs", "1") == 1
    assert capsys.readouterr().err.endswith("No space left on device\n")


def test_weights_take_the_place_of_no_pipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of a device: the file of weights is put in place whole, and /dev/null would be gone."""
    os.mkfifo(folder / "pipe")
    assert run_cli(monkeypatch, *TRAIN, "--save", "pipe", "--epochs", "1") == 1
    assert capsys.readouterr().err == "lfpgraph: cannot write pipe: it is no regular file\n"
    assert (folder / "pipe").is_fifo()


def test_letters_that_the_terminal_does_not_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(folder / "told", "w", encoding="ascii") as plain, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", plain)
        assert run_cli(patch, *TRAIN, "--epochs", "1") == 0
        assert run_cli(patch, "reproduce", "regression", "--seeds", "1", "--effort", "0.01", "--out", "o") == 0
    assert "\\xb1" in (folder / "told").read_text() and torch.get_num_threads() >= 1


def test_names_that_no_file_can_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a character in a module's name: reports show it as an escape."""
    (folder / "half.py").write_text(
        "from torch import nn\ndef build():\n    m = nn.Sequential()\n"
        "    m.add_module('\\ud800', nn.Linear(3, 3))\n    return m\n"
    )
    assert run_cli(monkeypatch, "coverage", "half:build", "--html", "r.html") == 0
    assert run_cli(monkeypatch, "graph", "half:build", "--out", "g.dot") == 0
    assert "ud800" in (folder / "r.html").read_text() and (folder / "g.dot").exists()
