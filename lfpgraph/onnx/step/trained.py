"""`export`: a trained model as an ONNX file, its own or one by torch's exporter, compared with the model in onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from ...errors import InputError, OnnxError, path_of
from ...graph.calls import arguments_of, input_tensors
from ...modes import eval_mode
from ...threads.silence import quiet
from ...tracing.flat import FlatModel, tracing
from ...writing import written_whole
from ..operators.builder import OPSET
from .exporter import input_names

__all__ = ["export"]

log = logging.getLogger("lfpgraph")
_LARGEST = 2**31 - 2**20  # bytes that protobuf writes into one file, but for the names


def export(
    model: nn.Module, path: str | Path, example: Any = None, *, opset: int | None = None, tolerance: float = 1e-4,
    external_data: bool | None = None,
) -> Path:  # fmt: skip
    """Write a model, wrapped or not, in eval mode, and compare the file with it in onnxruntime.

    A model made by `load` goes out as its own file with other weights, as long as that agrees with the model. Any other has
    inputs named as forward's arguments, outputs `output`, `output_1`..., and the first axis of every input open.

    Args:
        model: any module that torch.export takes; its mode is put back.
        path: the file to write.
        example: a tensor, a tuple of arguments or a dict of keyword arguments; a loaded ONNX model has its own.
        opset: of ONNX's operators; None for this library's own, or that of the file that the model was loaded from.
        tolerance: the largest relative difference between onnxruntime's outputs and torch's.
        external_data: keep large tensors in `<name>.data` beside the file; None does so from 2 GB on.

    Returns:
        The path of the file.

    Raises:
        OnnxError: the model has no ONNX form, or the file gives other outputs; it is removed then.
        InputError: the example does not fit.
    """
    path = path_of(path, OnnxError)
    if example is None and callable(own := getattr(model, "example", None)):
        example = own()
    args, kwargs = arguments_of(example, InputError)
    names, tensors = input_names(model, args, kwargs), [t.detach() for t in input_tensors(args, kwargs)]
    if not tensors:
        raise OnnxError("the example holds no tensor")
    flat = FlatModel(model, args, kwargs)
    loaded = getattr(model, "as_file", None) if opset is None else None
    with eval_mode(flat):
        with torch.no_grad(), tracing():
            expected = flat(*tensors)
        compared = dict(zip(names, tensors)), expected, tolerance
        if loaded is not None and (proto := loaded()) is not None:
            try:
                return _put(proto, path, external_data, *compared)
            except OnnxError as error:
                log.warning("the file that the model was loaded from does not hold it (%s); it is written anew", error)
        program = _to_onnx(flat, tensors, names, len(expected), opset or OPSET)
    _name_values(program.model.graph, "model.")  # FlatModel holds the model as `model`
    return _put(program, path, external_data, *compared)


def _put(made: Any, path: Path, external_data: bool | None, *compared: Any) -> Path:
    """Write what torch's exporter made, or a ModelProto; one that differs from the model, or does not open, is not kept."""
    try:
        with written_whole(path) as new:
            if isinstance(made, onnx.ModelProto):
                apart = made.ByteSize() >= _LARGEST if external_data is None else external_data
                onnx.save_model(made, new, save_as_external_data=apart, location=f"{path.name}.data")
            else:
                made.save(str(new), external_data=external_data)
            _compare(new, *compared)
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a file that stood here before
    except OSError as error:
        raise OnnxError(f"cannot write {path}: {error.strerror}") from error
    return path


def _to_onnx(flat: nn.Module, tensors: Sequence[Tensor], names: Sequence[str], outputs: int, opset: int) -> Any:
    titles = getattr(flat.model, "output_names", [f"output_{i}" if i else "output" for i in range(outputs)])
    open_axes = [({0: Dim.AUTO} if t.dim() and t.shape[0] > 1 else None) for t in tensors]
    try:
        with quiet(), torch.no_grad(), tracing():
            program: Any = torch.onnx.export(
                flat, tuple(tensors), dynamo=True, input_names=list(names), output_names=titles, opset_version=opset,
                dynamic_shapes=(tuple(open_axes),), verbose=False,
            )  # fmt: skip
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines[-1:])[:300]}"
        raise OnnxError(f"torch.onnx could not export the model: {reason}") from error
    return program


def _name_values(graph: Any, prefix: str) -> None:
    """Give initializers the model's own names, where they are free, and no name to two values, as torch's exporter does."""
    ends = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in (*ends, *graph.initializers.values())}
    for value in list(graph.initializers.values()):
        name = value.name.removeprefix(prefix)
        if name not in taken:
            value.name = name
            taken.add(name)
    for value in [value for node in graph.all_nodes() for value in node.outputs if value.name and value not in ends]:
        if value.name in taken:
            value.name = next(name for i in count() if (name := f"{value.name}_{i}") not in taken)
        taken.add(value.name)


def _compare(path: Path, inputs: dict[str, Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Run the file on the example and hold it against the model."""
    from ..runtime.trainer import open_session

    session = open_session(path, 0, ["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    found = session.run(None, {name: t.cpu().numpy() for name, t in inputs.items() if name in wanted})
    for i, (ours, theirs) in enumerate(zip(found, expected)):
        a, b = np.asarray(ours, np.float64), theirs.detach().cpu().double().numpy()
        size = float(np.linalg.norm(b))
        distance = float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(a))
        if a.shape != b.shape or not distance <= tolerance:
            apart = f"{distance:.2g}, more than tolerance={tolerance}"
            raise OnnxError(f"onnxruntime's output {i} differs from the model's by {apart}")
    log.info("%s agrees with the model in onnxruntime", path.name)
