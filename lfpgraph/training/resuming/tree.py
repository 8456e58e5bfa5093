"""Nested values in a safetensors file: tensors as such, everything else as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError
from ...optional import need

__all__ = ["load_tree", "save_tree"]

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
    """What `save_tree` wrote; tensors on the CPU. A damaged file gives whatever exception the damage does."""
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
