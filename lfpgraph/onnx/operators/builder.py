"""An ONNX graph under construction: equal nodes become one, and sizes may stay open.

It knows nothing of models; `translation` fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ...errors import OnnxError
from ..registry import DTYPES

__all__ = ["OPSET", "Builder", "Value", "onnx_type"]

OPSET = 20
IR_VERSION = 9
_LARGEST = 2_000_000_000  # bytes of tensors in one file; protobuf holds at most 2 GiB
_RANDOM = {"RandomUniformLike", "RandomNormalLike"}
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def onnx_type(dtype: torch.dtype) -> int:
    """ONNX's number for a dtype.

    Raises:
        KeyError: ONNX has none.
    """
    return _NUMBERS[dtype]


@dataclass(frozen=True)
class Value:
    """A tensor of the ONNX graph, with what the trace knows of it; `shape` holds numbers and symbols."""

    name: str
    dtype: torch.dtype
    shape: tuple[Any, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


class Builder:
    """Collects nodes. A size is a Python number or, where it is open, the name of an int64 tensor of shape [1]."""

    def __init__(self, name: str, seed: int | None = None) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, Tensor] = {}
        self.seed = seed
        self._known: dict[Any, tuple[str, ...]] = {}
        self._taken: set[str] = set()
        self._count = 0

    def reserve(self, name: str) -> str:
        """Take a name for an input, an initializer or an output.

        Raises:
            ValueError: it is taken.
        """
        if name in self._taken:
            raise ValueError(f"the name {name!r} is used twice")
        self._taken.add(name)
        return name

    def fresh(self, hint: str) -> str:
        """A name that nothing has."""
        while True:
            self._count += 1
            name = f"{hint}_{self._count}"
            if name not in self._taken:
                return self.reserve(name)

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operator (or find an equal one); its output's name, or a tuple of them.

        Inputs are values, names, or None for an optional one left out.
        """
        names = ["" if item is None else item.name if isinstance(item, Value) else str(item) for item in inputs]
        while names and not names[-1]:
            names.pop()
        key = (kind, tuple(names), outputs, tuple(sorted((k, repr(v)) for k, v in attributes.items())))
        if key in self._known and kind not in _RANDOM:
            found = self._known[key]
        else:
            if kind in _RANDOM and self.seed is not None:
                attributes["seed"] = float(self.seed + len(self.nodes))
            found = tuple(self.fresh(kind.lower()) for _ in range(outputs))
            self.nodes.append(helper.make_node(kind, names, list(found), **attributes))
            self._known[key] = found
        return found[0] if outputs == 1 else found

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """An initializer of a tensor, number or list; equal small ones are stored once."""
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(value)
        tensor = tensor.to(dtype or tensor.dtype).contiguous()
        small = tensor.numel() <= 1024
        key = ("constant", tensor.dtype, tuple(tensor.shape), tensor_bytes(tensor)) if small else None
        if key is not None and key in self._known:
            return self._known[key][0]
        name = self.fresh("constant")
        self.initializer(name, tensor)
        if key is not None:
            self._known[key] = (name,)
        return name

    def initializer(self, name: str, tensor: Tensor) -> None:
        """An initializer of a given name, which must be reserved."""
        self.initializers[name] = tensor.detach().cpu().contiguous()

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def cast(self, value: Any, source: torch.dtype, target: torch.dtype) -> Any:
        """The value as another dtype."""
        return value if source == target else self.op("Cast", value, to=onnx_type(target))

    def size(self, value: Value, axis: int) -> Any:
        """The size of an axis: a number, or the name of a tensor of shape [1]."""
        known = value.shape[axis]
        if isinstance(known, int):
            return known
        axis %= value.rank
        return self.op("Shape", value, start=axis, end=axis + 1)

    def vector(self, size: Any) -> str:
        """A size as an int64 tensor of shape [1]."""
        return size if isinstance(size, str) else self.ints(size)

    def permute(self, value: Any, order: Sequence[int]) -> Any:
        """The axes in another order; the value itself where that is their own."""
        order = list(order)
        return value if order == sorted(order) else self.op("Transpose", value, perm=order)

    def sizes(self, items: Sequence[Any], guess: bool = False) -> str:
        """A shape as an int64 vector; with `guess`, a single open size is left to Reshape as -1."""
        items = list(items)
        unknown = [i for i, item in enumerate(items) if not isinstance(item, int)]
        if guess and len(unknown) == 1 and 0 not in items and -1 not in items:
            items[unknown[0]] = -1
            unknown = []
        if not unknown:
            return self.ints(*items)
        return self.op("Concat", *map(self.vector, items), axis=0)

    def save(self, path: Path, metadata: dict[str, str], external: bool | None = None) -> None:
        """Write the nodes that are used, as a file.

        Args:
            external: keep large tensors in `<name>.data` beside the file; None does so where one file cannot hold them.

        Raises:
            OnnxError: the file cannot be written.
        """
        nodes = _used(self.nodes, {out.name for out in self.outputs})
        wanted = {n for node in nodes for n in node.input} | {i.name for i in self.inputs}
        tensors = {n: t for n, t in self.initializers.items() if n in wanted}
        outside = external or (external is None and sum(t.nbytes for t in tensors.values()) > _LARGEST)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.with_name(f"{path.name}.data") if outside else None
            initializers = _stored(tensors, data)
            graph = helper.make_graph(nodes, self.name, self.inputs, self.outputs, initializers)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="lfpgraph")
            model.ir_version = IR_VERSION
            for key, text in metadata.items():
                model.metadata_props.add(key=key, value=text)
            path.write_bytes(model.SerializeToString())
        except OSError as error:
            raise OnnxError(f"cannot write {path}: {error.strerror}") from error


def _stored(tensors: dict[str, Tensor], data: Path | None) -> list[TensorProto]:
    """Tensors as ONNX stores them; with `data`, the large ones in that file, each at a multiple of 4096 bytes."""
    if data is None:
        return [to_proto(name, tensor) for name, tensor in tensors.items()]
    found = []
    with data.open("wb") as file:
        for name, tensor in tensors.items():
            if tensor.nbytes < 1024:
                found.append(to_proto(name, tensor))
                continue
            file.seek(-(-file.tell() // 4096) * 4096)
            proto = TensorProto(
                name=name, data_type=onnx_type(tensor.dtype), dims=tensor.shape, data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", tensor.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            found.append(proto)
    return found


def _used(nodes: Sequence[Any], wanted: set[str]) -> list[Any]:
    kept = []
    wanted = set(wanted)
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The memory of a contiguous tensor on the CPU."""
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def to_proto(name: str, tensor: Tensor) -> TensorProto:
    """A tensor as ONNX stores it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return helper.make_tensor(name, TensorProto.BFLOAT16, list(tensor.shape), tensor_bytes(tensor), raw=True)
    return numpy_helper.from_array(np.asarray(tensor.numpy()), name)
