"""The files of an exported training step, opened in onnxruntime and checked. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import OnnxError, one_line

__all__ = ["METADATA", "companion", "description_of", "open_session", "read_tensors", "safetensors_function"]

METADATA = "lfpgraph.training_step"  # the key of a step's description in its file


def open_session(path: Path, threads: int, providers: list[str]) -> Any:
    """An InferenceSession of a file.

    Raises:
        OnnxError: no onnxruntime, no such file, or it cannot be loaded.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise OnnxError("OrtTrainer needs onnxruntime; install it with: pip install onnxruntime") from error
    if not path.is_file():
        raise OnnxError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # it warns that initializers stay open to a caller, which is what we want
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise OnnxError(f"onnxruntime cannot load {path}: {one_line(error, 300)}") from error


def description_of(session: Any, path: Path) -> dict[str, Any]:
    """What the exporter has noted in the file, checked against what the session has.

    Raises:
        OnnxError: no training step, or of another version.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = None
    lists = ("inputs", "parameters", "frozen", "buffers", "state", "outputs", "metrics")
    if not isinstance(found, dict) or any(not isinstance(found.get(key), list) for key in lists):
        raise OnnxError(f"{path} is no training step; lfpgraph.onnx.export_training_step writes one.")
    names = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}
    absent = [n for key in lists[:5] for n in found[key] if n not in names]
    if found.get("format") != 1 or absent:
        raise OnnxError(f"{path} was written by another version of lfpgraph; export it again. {absent[:3]}")
    return found


def companion(path: Path, name: Any) -> Path:
    """The path of a file beside another; a name that leads elsewhere is refused."""
    if not isinstance(name, str) or Path(name).name != name:
        raise OnnxError(f"{path.name} names a companion file outside its folder: {name!r}")
    return path.with_name(name)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    load_file = safetensors_function("load_file")
    try:
        return dict(load_file(str(path)))
    except Exception as error:  # SafetensorError, OSError
        raise OnnxError(f"cannot read {path}: {one_line(error, 300)}") from error


def safetensors_function(name: str) -> Any:
    """A function of `safetensors.numpy`, or an error that says how to install it."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise OnnxError("this needs safetensors; install it with: pip install safetensors") from error
    return getattr(safetensors.numpy, name)
