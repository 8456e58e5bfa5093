"""Checkpoints: folders that appear whole or not at all.

    FOLDER/step-00000120/model.safetensors      weights and buffers, as any reader of safetensors takes them
                         training.safetensors   optimizer, scheduler, policies, random states, position in the data
                         checkpoint.json        step, epoch and metrics, to read

A checkpoint is written under another name, flushed to the disk and then renamed, so a process that is killed at any
moment leaves the last checkpoint as it was, and at most a folder `.part-*` that the next one removes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..optional import need

__all__ = [
    "find_checkpoint",
    "kept",
    "latest",
    "load_weights",
    "prune",
    "read_state",
    "step_name",
    "write_checkpoint",
    "save_tree",
    "load_tree",
]

MODEL, TRAINING, NOTE = "model.safetensors", "training.safetensors", "checkpoint.json"


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def _complete(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(f for f in folder.glob("step-*") if (f / NOTE).is_file())


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
    path = Path(given)
    found = path if (path / NOTE).is_file() else latest(path) or latest(path / "checkpoints")
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
    folder, part, old = final.parent, final.with_name(f".part-{final.name}"), final.with_name(f".part-old-{final.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".part-*"):
            shutil.rmtree(left)
        part.mkdir()
        save_model(model, str(part / MODEL))
        save_tree(part / TRAINING, state)
        (part / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        for file in (part / MODEL, part / TRAINING, part / NOTE, part):
            _flush(file)
        if final.exists():
            final.rename(old)
        part.rename(final)
        _flush(folder)
        shutil.rmtree(old, ignore_errors=True)
    except errors as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write the checkpoint {final}: {reason}; {kept(folder)}") from error


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    for old in _complete(folder)[:-keep]:
        if old != best:
            gone = old.with_name(f".part-old-{old.name}")
            old.rename(gone)  # so that no half of it is ever seen
            shutil.rmtree(gone, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        CheckpointError: it is damaged, or belongs to another model; the model stays as it was.
    """
    safetensors = need("safetensors", "trainer", "a checkpoint")
    own = model.state_dict()
    try:
        with safetensors.safe_open(checkpoint / MODEL, "pt") as file:
            stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: (tuple(s.get_shape()), file.get_tensor(key).dtype) for key, s in stored.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot read {checkpoint / MODEL}: {error}") from error
    tied = {t.data_ptr() for name, t in own.items() if name in shapes}
    missing = [name for name, t in own.items() if name not in shapes and t.data_ptr() not in tied]
    unknown = [name for name in shapes if name not in own]
    other = [n for n, s in shapes.items() if n in own and s != (tuple(own[n].shape), own[n].dtype)]
    if missing or unknown or other:
        found = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has", unknown)) if names]
        found += [f"holds {n} as {list(shapes[n][0])}, not {list(own[n].shape)}" for n in other[:2]]
        raise CheckpointError(f"{checkpoint} is of another model than {type(model).__name__}: it {'; it '.join(found)}")
    need("safetensors.torch", "trainer", "a checkpoint").load_model(model, str(checkpoint / MODEL), strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `write_checkpoint` was given as `state`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return load_tree(checkpoint / TRAINING)
    except (OSError, KeyError, ValueError, need("safetensors", "trainer", "a checkpoint").SafetensorError) as error:
        raise CheckpointError(f"cannot read {checkpoint / TRAINING}: {error}") from error


_PLAIN = (bool, int, float, str, type(None))


def save_tree(path: Path, tree: Any) -> None:
    """Write dicts, lists, tuples, tensors, arrays, numbers and strings; the structure is JSON in the file's header.

    Raises:
        CheckpointError: a value of another kind. OSError, SafetensorError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(tree, tensors))
    need("safetensors.torch", "trainer", "a checkpoint").save_file(tensors, path, metadata={"tree": structure})


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote; tensors on the CPU."""
    with need("safetensors", "trainer", "a checkpoint").safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _unpack(json.loads(file.metadata()["tree"]), tensors)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor | np.ndarray):
        key = str(len(tensors))
        kind = "tensor" if isinstance(value, Tensor) else "array"
        tensors[key] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: key}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, tensors) for item in value]}
    raise CheckpointError(
        f"a checkpoint cannot hold a {type(value).__name__}; state of optimizers, schedulers and policies must be made of "
        "tensors, numbers, strings, dicts and lists"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    items = [_unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
