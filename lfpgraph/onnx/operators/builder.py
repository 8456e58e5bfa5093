"""An ONNX graph under construction: equal nodes become one, and sizes may stay open.

It knows nothing of models; `translation` fills it. Values are onnx_ir's; a size is a Python number or, where it is open, an int64
value without dimensions. Python numbers and lists among an operator's inputs become constants, as in torch's own exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import safetensors.torch
import torch
from onnx_ir.passes import common
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from onnxscript.values import Opset
from torch import Tensor
from torch.onnx._internal.exporter._building import OpRecorder
from torch.onnx._internal.exporter._tensors import SymbolicTensor

from ...errors import OnnxError
from ...writing import written_whole

__all__ = ["OPSET", "Builder", "settled"]

OPSET = 20
IR_VERSION = 9
_LARGEST = 2_000_000_000  # bytes of tensors in one file; protobuf holds at most 2 GiB
_SMALL = 1024  # elements of a constant that is stored once, and bytes of a tensor that stays inside the file


def settled(size: Any) -> Any:
    """A size as a number where tracing has found that it can be no other."""
    if isinstance(size, int):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_number else size


_Recorder: Any = OpRecorder  # its base class has a method that mypy takes for an abstract one


class Builder(_Recorder):
    """Collects nodes; `axes` gives readable names to open sizes, `seed` begins the numbers of operators that draw."""

    def __init__(self, name: str, axes: Mapping[str, str], seed: int | None = None) -> None:
        super().__init__(Opset("", OPSET), {})
        self.graph = ir.Graph([], [], nodes=[], name=name)
        self.axes, self.seed = axes, seed
        self._known: dict[Any, Any] = {}

    def _call_op(self, signature: Any, *call: Any) -> Any:
        """Add a node, or find an equal one. Numbers among inputs get the type of the others, so results have theirs."""
        outputs = super()._call_op(signature, *call)
        node = self.nodes[-1]
        types = {p.type_constraint: x.type for p, x in zip(signature.inputs, node.inputs) if x is not None and x.type}
        for value, result in zip(outputs, signature.outputs):
            value.type = value.type or types.get(result.type_constraint)
        attributes = tuple(sorted((a.name, _key(a.value)) for a in node.attributes.values()))
        found = self._known.setdefault((node.op_identifier(), *map(id, node.inputs), attributes), outputs)
        if found is not outputs:
            self.nodes.pop().resize_inputs(0)
        return found

    def next_seed(self) -> float:
        """Another seed for each operator that draws."""
        return float((self.seed or 0) + len(self.nodes))

    def describe(self, value: Any, fake: Any) -> Any:
        """Give a value the dtype and the shape of what it stands for: a fake tensor, or a size."""
        tensor = isinstance(fake, Tensor)
        whole = isinstance(fake, int | torch.SymInt)
        value.dtype = from_torch_dtype(fake.dtype if tensor else torch.int64 if whole else torch.float32)
        sizes = [settled(n) for n in fake.shape] if tensor else []
        value.shape = ir.Shape([n if isinstance(n, int) else self.axes.get(str(n), str(n)) for n in sizes])
        return value

    def input(self, name: str, fake: Tensor) -> Any:
        """An input of the file."""
        value = self.describe(SymbolicTensor(self.opset, name), fake)
        self.graph.inputs.append(value)
        return value

    def initializer(self, value: Any, tensor: Tensor) -> None:
        """Give a value the tensor that it holds, or holds unless a caller gives another."""
        value.const_value = TorchTensor(tensor.detach().cpu().contiguous(), name=value.name)
        self.graph.register_initializer(value)

    def constant(self, tensor: Tensor) -> Any:
        """A value for a tensor; equal small ones are stored once."""
        tensor = tensor.detach().cpu().contiguous()
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() <= _SMALL else id(tensor)
        key = tensor.dtype, tuple(tensor.shape), content
        if key not in self._known:
            name = f"constant_{len(self.graph.initializers)}"
            self._known[key] = self.describe(SymbolicTensor(self.opset, name), tensor)
            self.initializer(self._known[key], tensor)
        return self._known[key]

    def output(self, name: str, value: Any) -> None:
        """Make a value an output of the file under a name."""
        end = ir.node("Identity", [value], outputs=[ir.Value(name=name, type=value.type, shape=value.shape)])
        self.nodes.append(end)
        self.graph.outputs.append(end.outputs[0])

    def save(self, path: Path, metadata: Mapping[str, str], external: bool | None = None, beside: Any = None) -> None:
        """Write the nodes that are used, as a file, and files beside it; after an error all of them are as they were.

        Args:
            external: keep large tensors in `<name>.data` beside the file; None does so where one file cannot hold them.
            beside: a dict of further files by their names, each a Builder or a dict of tensors (safetensors).

        Raises:
            OnnxError: a file cannot be written.
        """
        try:
            with written_whole(path) as new:
                for name, made in (beside or {}).items():
                    if isinstance(made, Builder):
                        made._write(new.with_name(name), {}, external)
                    else:
                        safetensors.torch.save_file(made, new.with_name(name))
                self._write(new, metadata, external)
        except (OSError, ValueError, safetensors.SafetensorError) as error:  # a ValueError of a name with a zero byte
            raise OnnxError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error

    def _write(self, path: Path, metadata: Mapping[str, str], external: bool | None) -> None:
        self.graph.extend(self.nodes)
        functions = [ir.serde.deserialize_function(f.to_function_proto()) for f in self.functions.values()]
        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="lfpgraph", functions=functions)
        work = common.InlinePass(), common.LiftConstantsToInitializersPass(True, 0), common.RemoveUnusedNodesPass()
        for task in work:
            task(model)
        self.graph.opset_imports.clear()  # functions of torch name older opsets, of which nothing used has changed
        self.graph.opset_imports[""] = OPSET
        alike = [n for n in self.graph if n.op_type == "CastLike"]  # of which onnxruntime-web complains
        for node, kind in [(n, x.dtype) for n in alike if (x := n.inputs[1]) is not None and x.dtype is not None]:
            node.op_type, node.attributes["to"] = "Cast", ir.AttrInt64("to", kind.value)
            node.resize_inputs(1)
        for node in [n for n in self.graph if n.op_type == "Identity" and n.outputs[0].is_graph_output()]:
            made, end = node.inputs[0], node.outputs[0]
            if made is not None and made.producer() is not None and not made.is_graph_output():  # the output itself
                made.name, made.type, made.shape = end.name, end.type, end.shape
                self.graph.outputs[self.graph.outputs.index(end)] = made
                self.graph.remove(node, safe=True)
        for node in self.graph:  # names of nodes and types of what is inside are no use in the file
            node.name = None
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None
        model.metadata_props.update(metadata)
        size = sum(v.const_value.nbytes for v in self.graph.initializers.values() if v.const_value is not None)
        outside = external or (external is None and size > _LARGEST)
        ir.save(model, path, external_data=f"{path.name}.data" if outside else None, size_threshold_bytes=_SMALL)


def _key(value: Any) -> Any:
    """What an attribute is equal by."""
    if isinstance(value, ir.TensorProtocol):
        return (value.dtype, tuple(value.shape), value.tobytes()) if value.size <= _SMALL else id(value)
    return tuple(value) if isinstance(value, list) else value
