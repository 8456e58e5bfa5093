"""Exported programs made to do harm: `lfpgraph coverage` says so in one line, and nothing of them runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from .support.helpers import run_cli
from .support.hostile import exported_programs


def test_programs_made_to_do_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pt2"
    refused = 0
    for name, data in exported_programs(mark).items():
        path.write_bytes(data)
        status = run_cli(monkeypatch, "coverage", str(path), "--json")
        error = capsys.readouterr().err
        assert not mark.exists() and "this" not in sys.modules, name
        if name in ("good", "guard that is code"):  # guards are left out
            assert status == 0, error
            continue
        assert status == 1 and error.startswith("lfpgraph: ") and error.count("\n") == 1, (name, error)
        refused += "is not loaded, since" in error
    assert refused > 20


def test_these_files_do_harm(tmp_path: Path) -> None:
    """Else the test above would hold whatever is done: torch's own reader runs what is in them."""
    mark, path = tmp_path / "mark", tmp_path / "model.pt2"
    found, harmed = exported_programs(mark), 0
    for name in ("pickled weight", "pickled inputs", "size that is code"):
        path.write_bytes(found[name])
        try:
            torch.export.load(path)
        except Exception as error:  # it may fail afterwards
            assert str(error)
        harmed += mark.exists()
        mark.unlink(missing_ok=True)
    assert harmed >= 2, "torch 2.11 alone does not run the weight"
