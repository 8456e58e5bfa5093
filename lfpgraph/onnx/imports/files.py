"""Reading ONNX files that may be broken or hostile: everything is checked before anything is made of it.

What `read_model` returns makes every value before it is read, and has as many data for each tensor as its shape says, in
the file itself or in one of the same folder.
"""

from __future__ import annotations

import contextlib
import graphlib
import math
from collections.abc import Iterator, Set
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
from .table import IMPORTERS, OWN, check_node, operator_of

__all__ = ["read_model", "tensor_from"]

_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
OLDEST = 7
_LARGEST_FILE = 2**31 - 1  # the most that protobuf can hold
_SOME = 2**26  # bytes that nobody minds
_MOST_NODES = 200_000  # of a file whose functions are written out; the largest exporters make some tens of thousands


def read_model(source: Any) -> tuple[Any, Path | None]:
    """A checked ModelProto, and the file it is from, beside which its external data may lie.

    Args:
        source: a path, the bytes of a file, or a ModelProto.

    Raises:
        OnnxError: no such file, not ONNX, broken, cyclic, of an unknown opset, or it refers to files outside its folder.
        Exception: a broken graph; onnx's own C++ and protobuf raise what they like, which `load` says in an OnnxError.
    """
    proto, file = _parse(source)
    if proto.functions:
        _check_functions(proto)
        known = [(f.domain, f.name) for f in proto.functions if f.domain in OWN or f"{f.domain}.{f.name}" in IMPORTERS]
        proto = onnx.inliner.inline_selected_functions(proto, known, True)
        del proto.functions[:]  # an operator is never what a function of its name says, as for onnxruntime
    version = _check_header(proto)
    proto = _with_bodies(proto, version)
    _check_order(proto.graph)
    for node in _nodes(proto.graph):
        check_node(node, version)
    beside = [found for tensor in _tensors(proto.graph) if (found := _check_tensor(tensor, file)) is not None]
    held = sum(path.stat().st_size for path in {path for path, _ in beside})
    if sum(size for _, size in beside) > 4 * held + _SOME:
        raise OnnxError("many tensors of the file share the same bytes of a file beside it.")
    return proto, file


def _parse(source: Any) -> tuple[Any, Path | None]:
    if isinstance(source, onnx.ModelProto):
        return source, None
    file = None
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.stat().st_size > _LARGEST_FILE or not path.is_file():  # reading a pipe may never end
                raise OnnxError(f"{path} is larger than 2 GiB, which no ONNX file is, or no file at all.")
            source, file = path.read_bytes(), path
        except (OSError, ValueError) as error:
            raise OnnxError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not isinstance(source, bytes):
        raise OnnxError(f"an ONNX model is a path, bytes or a ModelProto, not {type(source).__name__}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(source)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise OnnxError(
            f"this is no ONNX file, or a truncated one: {type(error).__name__}: {one_line(error)}"
        ) from error
    return proto, file


def _check_functions(proto: Any) -> None:
    """Refuse functions that call one another so often that the file would grow without bounds."""
    bodies = {(f.domain, f.name, f.overload): f.node for f in proto.functions}
    sizes: dict[Any, int] = {}

    def size(nodes: Any, around: tuple[Any, ...]) -> int:
        total = 0
        for node in nodes:
            called = node.domain, node.op_type, node.overload
            if called in around:
                raise OnnxError(f"the function {node.op_type!r} calls itself")
            if called in bodies and called not in sizes:
                sizes[called] = size(bodies[called], (*around, called))
            total += sizes.get(called, 1)
        return total

    if (count := size(proto.graph.node, ())) > _MOST_NODES:
        raise OnnxError(f"the functions of the file stand for {count:.3g} nodes, more than {_MOST_NODES:,}")


def _with_bodies(proto: Any, version: int) -> Any:
    """The file with operators that have no function here written out in others, where ONNX itself says how."""
    wanted = set()
    for kind in {node.op_type for node in _nodes(proto.graph) if operator_of(node) == node.op_type} - set(IMPORTERS):
        if onnx.defs.has(kind, version, ""):
            schema: Any = onnx.defs.get_schema(kind, version, "")
            if schema.has_function or schema.has_context_dependent_function:
                wanted.add(("", kind))
    if not wanted:
        return proto
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    typed.graph.value_info.append(onnx.helper.make_tensor_value_info("", TensorProto.FLOAT, None))
    for t in proto.graph.initializer:  # the inliner asks for the type of each value, of one left out too
        typed.graph.value_info.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    try:
        return _with_bodies(onnx.inliner.inline_selected_functions(typed, list(wanted), False, True), version)
    except RuntimeError:
        return proto  # a type is not known; the operator is refused by its name


def _check_header(proto: Any) -> int:
    """The file's opset."""
    newest = onnx.defs.onnx_opset_version()
    if not proto.graph.node:
        raise OnnxError("the ONNX file has no nodes: it is empty, truncated, or no ONNX file.")
    versions = sorted({o.version for o in proto.opset_import if o.domain in OWN})  # skl2onnx names it twice
    if len(versions) != 1 or not OLDEST <= versions[0] <= newest:
        raise OnnxError(f"opset {versions or 'of no number'} is not supported; supported: {OLDEST} to {newest}")
    if proto.ir_version > onnx.IR_VERSION:
        raise OnnxError(f"the file's format (IR version {proto.ir_version}) is not known; install a newer onnx.")
    return int(versions[0])


def _check_order(graph: Any, around: Set[str] = frozenset(("",))) -> None:
    """Every value is made once, before it is read: no cycle, no name twice; subgraphs see the values `around` them."""
    _sort(graph)
    for kind, items in (("inputs", graph.input), ("initializers", graph.initializer)):
        names = sorted(item.name for item in items)
        if twice := [a for a, b in zip(names, names[1:]) if a == b]:
            raise OnnxError(f"two {kind} are named {twice[0]!r}; give one of them another name.")
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name not in known and name not in around:
                why = "which nothing before it makes: the graph has a cycle, or a value is missing."
                raise OnnxError(f"{node.op_type} {node.name!r} reads {name!r}, {why}")
        for inner in _subgraphs(node):
            _check_order(inner, known | around)
        for name in node.output:
            if name and (name in known or name in around):
                raise OnnxError(f"two nodes or inputs make {name!r}; give one of the values another name.")
            known.add(name)
    for out in graph.output:
        if not out.name or (out.name not in known and out.name not in around):
            raise OnnxError(f"nothing makes the output {out.name!r}")
    if not graph.output:
        raise OnnxError("the ONNX graph has no output.")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _sort(graph: Any) -> None:
    """Put nodes behind those that make what they read, as onnxruntime does; a cycle is left as it is."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    before = {i: {makers[name] for name in _reads(node) if name in makers} for i, node in enumerate(graph.node)}
    if any(j >= i for i, sources in before.items() for j in sources):
        with contextlib.suppress(graphlib.CycleError):
            nodes = [graph.node[i] for i in graphlib.TopologicalSorter(before).static_order()]
            del graph.node[:]
            graph.node.extend(nodes)


def _reads(node: Any) -> Iterator[str]:
    yield from node.input
    for inner in _subgraphs(node):
        yield from (out.name for out in inner.output)
        for other in inner.node:
            yield from _reads(other)


def _subgraphs(node: Any) -> list[Any]:
    """The graphs that a node of control flow holds."""
    found = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    if any(a.type == onnx.AttributeProto.GRAPHS for a in node.attribute) or (found and node.op_type not in _CONTROL):
        raise OnnxError(f"{node.op_type} {node.name!r} holds graphs of its own, which is not supported")
    return found


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    if graph.sparse_initializer:
        raise OnnxError("sparse initializers are not supported; write dense ones.")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type in (onnx.AttributeProto.TENSORS, onnx.AttributeProto.SPARSE_TENSOR):
                raise OnnxError(f"{node.op_type} {node.name!r} has an attribute of tensors that is not supported")
        for inner in _subgraphs(node):
            yield from _tensors(inner)


def _check_tensor(tensor: Any, file: Path | None) -> tuple[Path, int] | None:
    """Refuse a tensor whose data are not as many as its shape says, so that no more memory is taken than the file holds.

    Returns:
        For one that lies beside the model, in which file, and how many bytes.
    """
    if tensor.data_type not in DTYPES:
        kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in range(1, 24) else tensor.data_type
        raise OnnxError(f"tensor {tensor.name!r} is of type {kind}, which is not supported")
    if any(n < 0 for n in tensor.dims):
        raise OnnxError(f"tensor {tensor.name!r} has a negative size: {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    expected = count * DTYPES[tensor.data_type].itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_range(tensor, expected, file)[0], expected
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found, wanted = (len(tensor.raw_data), expected) if tensor.raw_data else (len(getattr(tensor, field)), count)
    if found != wanted:
        raise OnnxError(f"tensor {tensor.name!r} of shape {list(tensor.dims)} has {found} data where {wanted} belong")
    return None


def _external_range(tensor: Any, expected: int, file: Path | None) -> tuple[Path, int]:
    """The file and the offset of external data, inside the model's folder and of the right length."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if file is None:
        raise OnnxError(f"tensor {tensor.name!r} lies in a file beside the model; give the path of the model.")
    folder, inside = file.parent, file.parent.resolve()
    try:
        path = (folder / location).resolve()
        fits = bool(location) and not Path(location).is_absolute() and path.is_relative_to(inside) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise OnnxError(f"tensor {tensor.name!r} names {location[:100]!r}, which is no file in the model's folder.")
    held = path.stat()
    if held.st_nlink > 1 or path.samefile(file):
        why = "which is the model itself, or a file that stands elsewhere too (a hard link); copy it."
        raise OnnxError(f"tensor {tensor.name!r} lies in {location[:100]!r}, {why}")
    if held.st_size > _SOME and 16 * 512 * getattr(held, "st_blocks", held.st_size) < held.st_size:
        raise OnnxError(f"tensor {tensor.name!r} lies in {location[:100]!r}, which is a hole for the most part.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise OnnxError(f"tensor {tensor.name!r} has an offset or a length that is no number") from None
    if offset < 0 or length != expected or offset + length > held.st_size:
        raise OnnxError(f"tensor {tensor.name!r} does not lie within {location[:100]!r}, or its length is wrong.")
    return path, offset


def tensor_from(tensor: Any, file: Path | None) -> Tensor:
    """A checked tensor's values in torch.

    Raises:
        OnnxError: the file beside it cannot be read.
    """
    dtype, shape = DTYPES[tensor.data_type], list(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        size = math.prod(shape) * dtype.itemsize
        path, offset = _external_range(tensor, size, file)
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
