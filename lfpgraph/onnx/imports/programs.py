"""The graph of a file as programs: tensors apart from nodes, and every value under a name that no other one has.

Subgraphs (the branches of an If, the body of a Loop) are programs too. Since names are unique, they run on the same table
of values as the graph around them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from ...errors import OnnxError
from ..registry import DTYPES
from .files import read_model, tensor_from
from .table import IMPORTERS, Node, modest, operator_of

__all__ = ["Line", "Program", "Reader", "refilled", "refuse_unknown"]

_MAPS = "ai.onnx.ml.ZipMap"  # maps from labels to the numbers of a tensor, which is what is given here
_HELD = {  # attributes that are weights
    "ai.onnx.ml.LinearClassifier": ("coefficients", "intercepts"),
    "ai.onnx.ml.LinearRegressor": ("coefficients", "intercepts"),
    "ai.onnx.ml.SVMRegressor": ("coefficients", "support_vectors", "rho"),
    "ai.onnx.ml.Scaler": ("offset", "scale"),
}


@dataclass
class Line:
    """One node: which values it reads and makes, its attributes, and under `title` the submodule that runs it."""

    item: Any
    reads: list[str]
    makes: list[str]
    attributes: dict[str, Any]
    title: str = ""

    @property
    def bodies(self) -> list[Program]:
        return [value for value in self.attributes.values() if isinstance(value, Program)]


@dataclass
class Program:
    """The lines of a graph in order, and after which line (by position) which values are not read any more."""

    inputs: list[str]
    lines: list[Line] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    last: dict[int, list[str]] = field(default_factory=dict)

    def everything(self) -> Iterator[Line]:
        """Every line, those of subgraphs before the line that holds them."""
        for line in self.lines:
            for body in line.bodies:
                yield from body.everything()
            yield line

    def looks_at(self) -> Iterator[str]:
        """The names of all values that are read inside; a branch may have no lines and hand on a value from around it."""
        yield from self.outputs
        for line in self.lines:
            yield from line.reads
            for body in line.bodies:
                yield from body.looks_at()


class Reader:
    """Makes programs of graphs; `tensors` holds what initializers and Constant nodes hold, under their new names."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        self.holders: dict[str, Any] = {}  # the file's own tensors that these were read from
        self._names: set[str] = set()

    def program(self, graph: Any, around: MutableMapping[str, str] | None = None) -> Program:
        """The program of a graph; `around` names the values of the graphs that it lies in."""
        names: ChainMap[str, str] = ChainMap({}, around if around is not None else {"": ""})
        for tensor in graph.initializer:
            self._keep(tensor.name, tensor_from(tensor, self.file), names, tensor)
        program = Program([self._new(i.name, names) for i in graph.input if i.name not in names.maps[0]])
        for item in _scaled_first(graph):
            sizes = self.tensors.get(names.get(item.input[0], "")) if item.op_type == "ConstantOfShape" else None
            if item.op_type == "Constant":
                self._keep(item.output[0], _constant(item), names, item.attribute[0].t)
            elif sizes is not None and (filled := _filled(item, sizes)) is not None:
                self._keep(item.output[0], filled, names)
            elif operator_of(item) in ("Identity", _MAPS):
                names[item.output[0]] = names[item.input[0]]  # so what is shared stays one
            else:
                attributes = {a.name: self._attribute(a, names) for a in item.attribute}
                reads = [names[name] for name in item.input]
                for name in _HELD.get(operator_of(item), ()):
                    held = next((a for a in item.attribute if a.name == name and a.floats), None)
                    title = f"{item.name or item.op_type}.{name}"
                    reads.append("" if held is None else self._keep(title, torch.tensor(held.floats), names, held))
                makes = [self._new(name, names) if name else "" for name in item.output]
                program.lines.append(Line(item, reads, makes, attributes))
        program.outputs = [names[o.name] for o in graph.output]
        program.last = _last_uses(program)
        return program

    def _new(self, name: str, names: MutableMapping[str, str]) -> str:
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        names[name] = found
        return found

    def _keep(self, name: str, tensor: Tensor, names: MutableMapping[str, str], holder: Any = None) -> str:
        found = self._new(name, names)
        self.tensors[found], self.holders[found] = tensor, holder
        return found

    def _attribute(self, attribute: Any, names: MutableMapping[str, str]) -> Any:
        if attribute.type == onnx.AttributeProto.GRAPH:
            return self.program(attribute.g, names)
        return _attribute(attribute)


def _scaled_first(graph: Any) -> Iterator[Any]:
    """The nodes; a quantised table whose rows are looked up, moved and then scaled is scaled and then looked up: an embedding."""
    tables = {t.name for t in graph.initializer if t.data_type in (2, 3) and len(t.dims) == 2}
    numbers = {t.name for t in graph.initializer if math.prod(t.dims) == 1}
    ways: dict[str, list[Any]] = {}
    for item in graph.node:
        source, kind = (item.input[0] if item.input else ""), item.op_type
        if (kind == "Gather" and source in tables) or (kind in ("Reshape", "Squeeze", "Transpose") and source in ways):
            ways[item.output[0]] = [*ways.get(source, ()), item]
        if kind == "DequantizeLinear" and source in ways and item.input[1] in numbers:
            name = ways[source][0].input[0]
            for number, old in enumerate([item, *ways[source]]):
                new = onnx.NodeProto()
                new.CopyFrom(old)
                new.input[0] = name
                name = new.output[0] = item.output[0] + (f".{number}" if number < len(ways[source]) else "")
                yield new
        else:
            yield item


def _attribute(attribute: Any) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return tensor_from(attribute.t, None)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str | onnx.TypeProto):
        return value
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]


def _constant(item: Any) -> Tensor:
    """A Constant node's tensor."""
    attributes = {a.name: _attribute(a) for a in item.attribute}
    if len(item.output) != 1 or len(attributes) != 1:
        raise OnnxError(f"Constant {item.name!r} must have one value and one output")
    ((name, value),) = attributes.items()
    if name in ("value_float", "value_floats", "value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)
    if not isinstance(value, Tensor):
        raise OnnxError(f"Constant {item.name!r} has no tensor")
    return value


def _filled(item: Any, sizes: Tensor) -> Tensor | None:
    """What a ConstantOfShape node makes of sizes that the file holds: as good as an initializer, unless sizes themselves."""
    value = next((_attribute(a) for a in item.attribute if a.name == "value"), torch.zeros(1))
    if not value.is_floating_point() or not sizes.numel():
        return None
    return value.reshape(()).expand(modest(Node(item.op_type, item.name, 0, {}, 1), sizes.tolist())).clone()


def _last_uses(program: Program) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for position, line in enumerate(program.lines):
        inside = [name for body in line.bodies for name in body.looks_at()]
        for name in (*line.reads, *line.makes, *inside):
            last[name] = position
    found: dict[int, list[str]] = {}
    made = {name for line in program.lines for name in line.makes}
    for name, position in last.items():
        if name and name in made and name not in program.outputs:
            found.setdefault(position, []).append(name)
    return found


def refilled(source: Any, values: Mapping[str, Tensor]) -> Any:
    """A copy of a file (as `read_model` takes it) with new values in tensors, by a Reader's names; None if one has no place."""
    read, file = read_model(source)
    proto = onnx.ModelProto()
    proto.CopyFrom(read)
    reader = Reader(file)
    reader.program(proto.graph)
    for name, old in reader.tensors.items():
        new, holder = values.get(name, old).detach().cpu(), reader.holders[name]
        same = new.dtype == old.dtype and torch.equal(new, old)
        if isinstance(holder, onnx.AttributeProto):
            holder.floats[:] = new.tolist()
        elif holder is not None and holder.dims == list(new.shape) and DTYPES.get(holder.data_type) == new.dtype:
            if not same or holder.data_location == onnx.TensorProto.EXTERNAL:
                raw = new.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                holder.CopyFrom(onnx.helper.make_tensor(holder.name, holder.data_type, new.shape, raw, raw=True))
        elif not same:
            return None
    for node in [node for node in proto.graph.node if operator_of(node) == _MAPS]:
        node.CopyFrom(onnx.helper.make_node("Identity", node.input, node.output, node.name))
        for out in [out for out in proto.graph.output if out.name in node.output]:
            out.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    return proto


def refuse_unknown(lines: list[Line]) -> None:
    """Refuse operators that have no function, all of them named."""
    unknown = {f"{operator_of(line.item)} ({line.item.name or 'no name'})" for line in lines
               if operator_of(line.item) not in IMPORTERS}  # fmt: skip
    if any("com.microsoft.nchwc." in name for name in unknown):
        raise OnnxError("onnxruntime wrote the file for one kind of CPU (nchwc); write it with its level EXTENDED.")
    if unknown:
        names = f"{', '.join(sorted(unknown))}. They can be added with lfpgraph.onnx.imports.table.imports."
        raise OnnxError(f"the ONNX file holds operators that cannot be imported, by operator and node: {names}")
