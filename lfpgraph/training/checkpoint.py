"""Checkpoints: folders that appear whole or not at all.

    FOLDER/step-00000120/model.safetensors      weights and buffers, as any reader of safetensors takes them
                         training.safetensors   optimizer, scheduler, policies, random states, position in the data
                         checkpoint.json        step, epoch and metrics, to read

A checkpoint is written under another name, flushed to the disk and then renamed, so a process that is killed at any
moment leaves the last checkpoint as it was, and at most a folder `.part-*` that the next one removes. Where one of the same
step is to be replaced, the new one first stands beside it (`step-00000120-00000120`), and only then the old one goes: at
every moment there is a whole one. `checkpoint.json` holds digests of the other two files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError, one_line
from ..optional import need
from .resuming.tree import load_tree, save_tree

__all__ = [
    "checked_weights", "find_checkpoint", "kept", "latest", "later_than", "load_weights", "prune", "read_state", "settle",
    "step_name", "write_checkpoint",
]  # fmt: skip

FORMAT = 1  # of a checkpoint, which its note says
MODEL, TRAINING, NOTE = "model.safetensors", "training.safetensors", "checkpoint.json"
_FOLDER = re.compile(r"step-([0-9]+)(-[0-9]+)?")  # the second number: one that is about to replace another of its step


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def _complete(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    found = [(match, f) for f in folder.glob("step-*") if (match := _FOLDER.fullmatch(f.name)) and (f / NOTE).is_file()]
    return [f for _, f in sorted(found, key=lambda pair: (int(pair[0][1]), pair[0][2] or ""))]


def later_than(checkpoint: Path) -> list[Path]:
    """The checkpoints beside one that are of later steps."""
    beside = _complete(checkpoint.parent)
    return beside[beside.index(checkpoint) + 1 :] if checkpoint in beside else []


def latest(folder: Path | None) -> Path | None:
    """The newest checkpoint in a folder, if there is one."""
    found = _complete(folder) if folder is not None else []
    return found[-1] if found else None


def kept(folder: Path | None) -> str:
    """What is left of a run that fails, for a message."""
    found = latest(folder)
    return f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"


def find_checkpoint(given: str | os.PathLike[str]) -> Path:
    """A checkpoint by its path, or the newest of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(given, str | os.PathLike):
        raise CheckpointError(f"a checkpoint is given by its path, not by {type(given).__name__}")
    path = Path(given)
    try:
        found = path if (path / NOTE).is_file() else latest(path) or latest(path / "checkpoints")
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)[:300]}: {error.strerror}") from error
    if found is None:
        raise CheckpointError(f"{path} is no checkpoint and holds none (a folder step-* with {NOTE} in it)")
    return found


def write_checkpoint(final: Path, model: nn.Module, state: dict[str, Any], note: dict[str, Any]) -> None:
    """Write a checkpoint; one of the same name is replaced.

    Raises:
        CheckpointError: it could not be written (a full disk); nothing of it is left, and the others are as they were.
    """
    errors = (OSError, need("safetensors", "trainer", "a checkpoint").SafetensorError)
    save_model = need("safetensors.torch", "trainer", "a checkpoint").save_model
    folder, part = final.parent, final.with_name(f".part-{final.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder)
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        save_model(model, str(part / MODEL))
        save_tree(part / TRAINING, state)
        digests = {name: _digest(part / name) for name in (MODEL, TRAINING)}
        (part / NOTE).write_text(json.dumps({**note, "format": FORMAT, "sha256": digests}, indent=1) + "\n")
        for file in (part / MODEL, part / TRAINING, part / NOTE, part):
            _flush(file)
        part.rename(final.with_name(f"{final.name}-{final.name[5:]}") if final.exists() else final)
        _flush(folder)
        settle(folder)
        for left in folder.glob(".part-*"):
            shutil.rmtree(left, ignore_errors=True)
    except errors as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write the checkpoint {final}: {reason}; {kept(folder)}") from error


def settle(folder: Path) -> None:
    """Let checkpoints that stand beside those they replace take their places, as a killed process may have left them."""
    for new in [f for f in _complete(folder) if f.name.count("-") == 2]:
        final = new.with_name(new.name.rpartition("-")[0])
        if final.exists():
            old = final.with_name(f".part-old-{final.name}")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        new.rename(final)
        _flush(folder)


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    for old in _complete(folder)[:-keep]:
        if old != best:
            gone = old.with_name(f".part-old-{old.name}")
            old.rename(gone)  # so that no half of it is ever seen
            shutil.rmtree(gone, ignore_errors=True)


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            found.update(block)
    return found.hexdigest()


def _check_digest(checkpoint: Path, name: str) -> None:
    """Compare a file with what was noted when it was written, its format and digest; older versions have noted neither."""
    if (checkpoint / name).exists() and not (checkpoint / name).is_file():
        raise ValueError("it is no regular file")  # reading a pipe or a device may never end
    note = json.loads((checkpoint / NOTE).read_text())
    if note.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"its format is {note['format']!r}, and this version reads {FORMAT} alone; use the version of lfpgraph that wrote it"
        )
    noted = note.get("sha256", {}).get(name)
    if noted is not None and noted != _digest(checkpoint / name):
        raise ValueError("it is not the file that was written (its digest is another)")


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checked_weights(model: nn.Module, checkpoint: Path) -> dict[str, Tensor]:
    """A checkpoint's weights, which fit the model.

    Raises:
        CheckpointError: it is damaged, or belongs to another model.
    """
    load_file = need("safetensors.torch", "trainer", "a checkpoint").load_file
    own = model.state_dict()
    try:
        _check_digest(checkpoint, MODEL)
        stored = dict(sorted(load_file(checkpoint / MODEL).items()))
    except Exception as error:  # a damaged file gives whatever the damage does
        raise CheckpointError(f"cannot read {checkpoint / MODEL}: {one_line(error)}") from error
    tied = {t.data_ptr() for name, t in own.items() if name in stored}
    missing = [name for name, t in own.items() if name not in stored and t.data_ptr() not in tied]
    unknown = [name for name in stored if name not in own]
    other = [n for n, s in stored.items() if n in own and (s.shape, s.dtype) != (own[n].shape, own[n].dtype)]
    if missing or unknown or other:
        found = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has", unknown)) if names]
        for name in other[:2]:
            theirs, mine = stored[name], own[name]
            same = theirs.shape == mine.shape
            kinds = [str(t.dtype) if same else str(list(t.shape)) for t in (theirs, mine)]
            found.append(f"holds {name} as {kinds[0]}, not {kinds[1]}")
        raise CheckpointError(f"{checkpoint} is of another model than {type(model).__name__}: it {'; it '.join(found)}")
    return stored


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        CheckpointError: it is damaged, or belongs to another model; the model stays as it was.
    """
    model.load_state_dict(checked_weights(model, checkpoint), strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `write_checkpoint` was given as `state`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        _check_digest(checkpoint, TRAINING)
        return load_tree(checkpoint / TRAINING)
    except Exception as error:  # a damaged file gives whatever the damage does
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"cannot read {checkpoint / TRAINING}: {reason}") from error
