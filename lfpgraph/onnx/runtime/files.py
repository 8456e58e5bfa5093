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
    known = onnxruntime.get_available_providers()
    if unknown := [p for p in providers if (p[0] if isinstance(p, tuple) else p) not in known]:
        raise OnnxError(f"this onnxruntime has no {', '.join(map(str, unknown))}; it has {', '.join(known)}")
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
    except (ValueError, RecursionError):
        found = None
    lists = ("inputs", "parameters", "frozen", "buffers", "state", "outputs", "metrics")
    if not isinstance(found, dict) or not all(_are_names(found.get(key)) for key in lists):
        raise OnnxError(f"{path} is no training step; lfpgraph.onnx.export_training_step writes one.")
    texts = [found.get(key) for key in ("target", "reward", "optimizer")]
    aliases, example = found.get("aliases"), found.get("example", {})
    right = found.get("format") == 1 and isinstance(aliases, dict) and isinstance(example, dict) and (
        _are_names([*texts, *aliases.values()]) and all(map(_is_shape, example.values()))
    )  # fmt: skip
    taken = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}
    given = {o.name for o in session.get_outputs()}
    changing = [name for key in ("parameters", "buffers", "state") for name in found[key]]
    wanted = [*found["outputs"], *(f"metric/{n}" for n in found["metrics"]), *(f"new/{n}" for n in changing)]
    absent = [n for n in (*(n for key in lists[:5] for n in found[key]), texts[0]) if right and n not in taken]
    absent += [n for n in wanted if n not in given]
    if absent or not right:
        names = f" It lacks {', '.join(absent[:3])}." if absent else ""
        raise OnnxError(f"{path} was written by another version of lfpgraph; export it again.{names}")
    return found


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and 0 <= n < 2**31 for n in value)


def companion(path: Path, name: Any) -> Path:
    """The path of a file beside another; a name that leads elsewhere is refused."""
    if not isinstance(name, str) or Path(name).name != name:
        raise OnnxError(f"{path.name} names a companion file outside its folder: {name!r}")
    return path.with_name(name)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    load_file = safetensors_function("load_file")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # reading a pipe may never end
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
