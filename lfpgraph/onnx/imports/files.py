"""Reading ONNX files that may be broken or hostile: everything is checked before anything is made of it.

What `read_model` returns makes every value before it is read, and has as many data for each tensor as its shape says, in
the file itself or in one of the same folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from torch import Tensor

from ...errors import OnnxError, one_line
from ..registry import DTYPES

__all__ = ["read_model", "tensor_from"]

OLDEST = 7
_LARGEST_FILE = 2**31 - 1  # the most that protobuf can hold


def read_model(source: Any) -> tuple[Any, Path | None]:
    """A checked ModelProto, and the folder that its external data may lie in.

    Args:
        source: a path, the bytes of a file, or a ModelProto.

    Raises:
        OnnxError: no such file, not ONNX, broken, cyclic, of an unknown opset, or it refers to files outside its folder.
    """
    proto, folder = _parse(source)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        _check_header(proto)
        _check_order(proto.graph)
        for tensor in _tensors(proto.graph):
            _check_tensor(tensor, folder)
    except OnnxError:
        raise
    except Exception as error:  # onnx's own C++ and protobuf raise what they like on a broken graph
        raise OnnxError(f"the ONNX file is broken: {_line(error)}") from error
    return proto, folder


def _parse(source: Any) -> tuple[Any, Path | None]:
    if isinstance(source, onnx.ModelProto):
        return source, None
    folder = None
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise OnnxError(f"{path} is larger than 2 GiB, which no ONNX file is; large tensors belong beside it.")
            source, folder = path.read_bytes(), path.parent
        except OSError as error:
            raise OnnxError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(source, bytes):
        raise OnnxError(f"an ONNX model is a path, bytes or a ModelProto, not {type(source).__name__}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(source)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise OnnxError(f"this is no ONNX file, or a truncated one: {_line(error)}") from error
    return proto, folder


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _check_header(proto: Any) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not proto.graph.node:
        raise OnnxError("the ONNX file has no nodes: it is empty, truncated, or no ONNX file.")
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OLDEST <= versions[0] <= newest:
        raise OnnxError(f"opset {versions or 'of no number'} is not supported; supported: {OLDEST} to {newest}")
    if proto.graph.sparse_initializer:
        raise OnnxError("sparse initializers are not supported; write dense ones.")


def _check_order(graph: Any) -> None:
    """Every value is made once, before it is read: no cycle, no name twice."""
    known = {""} | {i.name for i in graph.input} | {t.name for t in graph.initializer}
    made: set[str] = set()
    for node in graph.node:
        for name in node.input:
            if name not in known:
                raise OnnxError(
                    f"{node.op_type} {node.name!r} reads {name!r}, which nothing before it makes: the graph has a cycle, "
                    "nodes out of order or a value missing."
                )
        for name in node.output:
            if name and (name in known or name in made):
                raise OnnxError(f"two nodes or inputs make {name!r}")
            made.add(name)
            known.add(name)
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise OnnxError(
                    f"{node.op_type} {node.name!r} holds a graph of its own; control flow cannot be traced."
                )
    for out in graph.output:
        if out.name not in known:
            raise OnnxError(f"nothing makes the output {out.name!r}")
    if not graph.output:
        raise OnnxError("the ONNX graph has no output.")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type in (onnx.AttributeProto.TENSORS, onnx.AttributeProto.SPARSE_TENSOR):
                raise OnnxError(f"{node.op_type} {node.name!r} has an attribute of tensors that is not supported")


def _check_tensor(tensor: Any, folder: Path | None) -> None:
    """Refuse a tensor whose data are not as many as its shape says, so that no more memory is taken than the file holds."""
    if tensor.data_type not in DTYPES:
        kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in range(1, 24) else tensor.data_type
        raise OnnxError(f"tensor {tensor.name!r} is of type {kind}, which is not supported")
    if any(n < 0 for n in tensor.dims):
        raise OnnxError(f"tensor {tensor.name!r} has a negative size: {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    expected = count * DTYPES[tensor.data_type].itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        _external_range(tensor, expected, folder)
        return
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found, wanted = (len(tensor.raw_data), expected) if tensor.raw_data else (len(getattr(tensor, field)), count)
    if found != wanted:
        raise OnnxError(f"tensor {tensor.name!r} of shape {list(tensor.dims)} has {found} data where {wanted} belong")


def _external_range(tensor: Any, expected: int, folder: Path | None) -> tuple[Path, int]:
    """The file and the offset of external data, inside the model's folder and of the right length."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise OnnxError(f"tensor {tensor.name!r} lies in a file beside the model; give the path of the model.")
    inside = folder.resolve()
    try:
        path = (folder / location).resolve()
        fits = bool(location) and not Path(location).is_absolute() and path.is_relative_to(inside) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise OnnxError(f"tensor {tensor.name!r} names {location[:100]!r}, which is no file in the model's folder.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise OnnxError(f"tensor {tensor.name!r} has an offset or a length that is no number") from None
    if offset < 0 or length != expected or offset + length > path.stat().st_size:
        raise OnnxError(f"tensor {tensor.name!r} does not lie within {location[:100]!r}, or its length is wrong.")
    return path, offset


def tensor_from(tensor: Any, folder: Path | None) -> Tensor:
    """A checked tensor's values in torch.

    Raises:
        OnnxError: the file beside it cannot be read.
    """
    dtype, shape = DTYPES[tensor.data_type], list(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        size = math.prod(shape) * dtype.itemsize
        path, offset = _external_range(tensor, size, folder)
        try:
            raw = np.fromfile(path, np.uint8, size, offset=offset)
        except OSError as error:
            raise OnnxError(f"cannot read {path}: {error}") from error
    elif dtype == torch.bfloat16:
        raw = np.frombuffer(tensor.raw_data or np.array(tensor.int32_data, np.uint16).tobytes(), np.uint8).copy()
    else:
        return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
    found = torch.empty(shape, dtype=dtype)
    found.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(raw))
    return found
