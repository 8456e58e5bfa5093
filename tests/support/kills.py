"""Runs that are killed at random moments and taken up again."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import safetensors
import torch

from lfpgraph.training import checkpoint

from .processes import start
from .trainer_run import same, whole_run

__all__ = ["killed", "left_alone", "readable"]


def readable(folder: Path) -> list[Path]:
    """Every checkpoint in a run's folder, each read whole."""
    found = sorted((folder / "checkpoints").glob("step-*"))
    for path in found:
        checkpoint.read_state(path)
        with safetensors.safe_open(path / checkpoint.MODEL, "pt") as file:
            assert all(file.get_tensor(key) is not None for key in file.keys())  # noqa: SIM118
    return found


def left_alone(folder: Path, epochs: int) -> Path:
    """A run from its beginning to its end, which the killed ones are compared with."""
    whole = start(whole_run, folder, epochs)
    whole.join()
    assert whole.exitcode == 0
    return folder


def killed(tmp_path: Path, times: int, epochs: int, seed: int = 0, whole: Path | None = None) -> None:
    """Kill a run at random moments, take it up each time, and compare its end with a run that was left alone.

    After each kill every checkpoint can be read, and none is older than the newest that was there before.

    Args:
        whole: the folder of a run of as many epochs that was left alone; one is made by default.
    """
    draw = random.Random(seed)
    whole = whole or left_alone(tmp_path / "whole", epochs)
    folder, kills, lost = tmp_path / "run", 0, 0
    newest = checkpoint.latest(folder / "checkpoints")
    while kills < times:
        process = start(whole_run, folder, epochs)
        while process.is_alive() and checkpoint.latest(folder / "checkpoints") == newest:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.06))
        seen = checkpoint.latest(folder / "checkpoints")
        assert process.is_alive(), "the run ended before it was killed often enough: give it more epochs"
        process.kill()
        process.join()
        kills += 1
        readable(folder)
        newest = checkpoint.latest(folder / "checkpoints")
        assert seen is not None and newest is not None and newest.name >= seen.name
        lines = (folder / "log.jsonl").read_text()
        assert lines.endswith("\n")
        steps = [json.loads(line)["step"] for line in lines.splitlines()]
        lost = max(lost, steps[-1] - int(newest.name[-8:]))
    assert lost <= 1, "only the step that had not been saved may be lost"
    rest = start(whole_run, folder, epochs)
    rest.join()
    assert rest.exitcode == 0
    assert same(torch.load(folder / "final.pt"), torch.load(whole / "final.pt"))
