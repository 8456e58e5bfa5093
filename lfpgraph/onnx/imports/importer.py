"""ONNX files as modules: `load` makes an `nn.Module` that traces, wraps, trains and explains like any other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...errors import OnnxError, one_line
from ...silence import quiet
from ...tracing.flat import is_tracing
from . import elementwise, layers, losses, norms, places, sequences, shapes  # noqa: F401  (they fill the table)
from .files import read_model, tensor_from
from .table import IMPORTERS, LARGEST, Known, Node, dtype_of, tensor_of
from .weights import is_weight, weights_of

__all__ = ["OnnxModel", "load"]

_SMALL, _DEEPEST = 64, 50  # numbers of a constant that Python knows; modules one in another


def load(source: Any, *, trainable: Callable[[str, Tensor], bool] | Sequence[str] | None = None) -> OnnxModel:
    """An ONNX model as an `nn.Module`, with one submodule for each node.

    Initializers keep their names. Parameters are those of a float type, with finite values, that are read (through views
    and casts too) as the weight or bias of a convolution, matrix product, norm, recurrence, PRelu or embedding; or that
    have more than one element and are added, subtracted or multiplied. All others, running statistics of batch norms among
    them, are buffers. Batch norms and dropout run as in eval mode; a file that has them in training mode is refused.

    Args:
        source: a path, the bytes of a file, or a ModelProto.
        trainable: in place of that rule, a function of name and tensor, or patterns of names (shell style); only float
            initializers can train.

    Raises:
        OnnxError: the file is broken or hostile, or holds operators that are not known, all of them named.
    """
    proto, file = read_model(source)
    try:
        return OnnxModel(proto, file, trainable)
    except OnnxError:
        raise
    except Exception as error:
        raise OnnxError(f"the ONNX file is broken: {type(error).__name__}: {one_line(error)}") from error


class _Step(nn.Module):
    """One node; a submodule, so that reports and composites can name it."""

    def __init__(self, node: Node, function: Callable[..., Any]) -> None:
        super().__init__()
        self.node, self.function = node, function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.node, *inputs)

    def extra_repr(self) -> str:
        return self.node.kind


class OnnxModel(nn.Module):
    """A loaded ONNX graph. Made by `load`.

    Attributes:
        input_names, output_names: as the file has them, in the order of forward's arguments and results.
    """

    def __init__(self, proto: Any, file: Path | None, trainable: Any) -> None:
        super().__init__()
        graph = proto.graph
        version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        initializers = {t.name: t for t in graph.initializer}
        self.input_info = [i for i in graph.input if i.name not in initializers]
        self.input_names = [i.name for i in self.input_info]
        self.output_names = [o.name for o in graph.output]
        self.constants: dict[str, Known] = {}
        self.paths: dict[str, str] = {}
        _refuse_unknown(graph)
        chosen = weights_of(graph)
        for name, tensor in initializers.items():
            self._store(name, tensor_from(tensor, file), chosen, trainable)
        self.steps = nn.ModuleDict()
        self._program: list[tuple[str, list[str], list[str]]] = []
        for position, item in enumerate(graph.node):
            held = _constant(item) if item.op_type == "Constant" else None
            if held is not None:
                self._store(item.output[0], held, set(), [])
                continue
            self._add(position, item, version)
        self._measured: set[Any] = set()
        self._last = _last_uses(self._program, self.output_names)

    def _store(self, name: str, tensor: Tensor, chosen: set[str], trainable: Any) -> None:
        """Keep an initializer as a parameter, a buffer or a known number."""
        trains = tensor.is_floating_point() and is_weight(name, tensor, chosen, trainable)
        if not trains and tensor.dim() <= 1 and tensor.numel() <= _SMALL and _is_plain(tensor):
            self.constants[name] = Known(tensor.reshape(-1).tolist(), tensor.dim() == 0, tensor.dtype)
            return
        owner, path = self._place(name)
        if trains:
            owner.register_parameter(path[-1], nn.Parameter(tensor))
        else:
            owner.register_buffer(path[-1], tensor)
        self.paths[name] = ".".join(path)

    def _place(self, name: str) -> tuple[nn.Module, list[str]]:
        """The module for an initializer, made where it is missing, and the path to it.

        That is the initializer's name split at the dots, with underscores where a part is taken.
        """
        path = [part for part in name.replace("/", ".").split(".") if part] or ["unnamed"]
        path[_DEEPEST:] = ["_".join(path[_DEEPEST:])] if len(path) > _DEEPEST else []
        if path[0] in ("steps", "training", "forward") or path[0] in self.__dict__:
            path[0] += "_"
        owner: nn.Module = self
        for depth, part in enumerate(path):
            last = depth == len(path) - 1
            while _taken(owner, part, last):
                part += "_"
            path[depth] = part
            if not last:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]  # type: ignore[assignment]
        return owner, path

    def _add(self, position: int, item: Any, version: int) -> None:
        attributes = {a.name: _attribute(a) for a in item.attribute}
        read = max((i + 1 for i, name in enumerate(item.output) if name), default=0)
        node = Node(item.op_type, item.name or item.op_type, version, attributes, read)
        title = re.sub(r"\W+", "_", item.name or item.op_type).strip("_") or "node"
        if title in self.steps or hasattr(self.steps, title):
            title = f"{title}_{position}"
        self.steps[title] = _Step(node, IMPORTERS[item.op_type])
        self._program.append((title, list(item.input), list(item.output)))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for the inputs, in the file's order or by its names: a tensor, or a tuple of several."""
        given = dict(zip(self.input_names, inputs))
        if len(inputs) > len(self.input_names) or set(named) & set(given) or {*given, *named} != set(self.input_names):
            raise OnnxError(f"the model takes {', '.join(self.input_names)}; {len(inputs) + len(named)} inputs came")
        env: dict[str, Any] = {"": None, **given, **named, **self.constants}
        for name, path in self.paths.items():
            env[name] = attrgetter(path)(self)
        if not is_tracing() and not torch.compiler.is_exporting():
            self._refuse_absurd(env)
        results = tuple(tensor_of(value) for value in self._run(env))
        return results[0] if len(results) == 1 else results

    def _run(self, env: dict[str, Any], look: Callable[[Any], None] | None = None) -> list[Any]:
        """Run the nodes on the values in `env` and return the outputs; `look` is shown what each node makes."""
        for position, (title, reads, makes) in enumerate(self._program):
            try:
                found = self.steps[title](*(env[name] for name in reads))
            except OnnxError:
                raise
            except Exception as error:
                if is_tracing():
                    raise
                message = f"{self.steps[title]} ({title}) cannot run on these inputs: {one_line(error)}"
                raise OnnxError(message) from error
            made = found if isinstance(found, tuple | list) else (found,)
            if look is not None:
                look(made)
            env.update(zip(makes, made))
            for name in self._last.get(position, ()):
                del env[name]
        return [env[name] for name in self.output_names]

    def _refuse_absurd(self, env: dict[str, Any]) -> None:
        """Before the first run on inputs of new sizes, work out the shapes, and refuse a file that asks for huge tensors."""
        sizes = tuple(tuple(env[name].shape) for name in self.input_names if isinstance(env[name], Tensor))
        if sizes in self._measured:
            return

        def look(made: Sequence[Any]) -> None:
            for value in made:
                if isinstance(value, Tensor) and value.numel() > LARGEST:
                    raise OnnxError(f"the file asks for a tensor of {value.numel():.3g} elements: {list(value.shape)}")

        with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            fakes = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in env.items()}
            try:
                self._run(fakes, look)
            except OnnxError as error:
                if "elements" in str(error):
                    raise  # other errors are the run's own to tell
        self._measured.add(sizes)

    def example(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of the shapes that the file gives; open sizes become `batch` first, else 8.

        Raises:
            OnnxError: an input of unknown shape or kind, or an absurd one.
        """
        draw = torch.Generator().manual_seed(seed)
        found = []
        for info in self.input_info:
            kind = info.type.tensor_type
            if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
                raise OnnxError(f"input {info.name!r} has no shape in the file; give example inputs.")
            sizes = [
                d.dim_value if d.HasField("dim_value") else batch if i == 0 else 8 for i, d in enumerate(kind.shape.dim)
            ]
            if any(n < 0 for n in sizes) or math.prod(sizes) > LARGEST:
                raise OnnxError(f"input {info.name!r} has an absurd shape: {sizes}")
            dtype = dtype_of(kind.elem_type)
            if dtype.is_floating_point:
                found.append(torch.randn(sizes, generator=draw).to(dtype))
            else:
                found.append(torch.randint(0, 2, sizes, generator=draw).to(dtype))
        return tuple(found)


def _taken(owner: nn.Module, name: str, last: bool) -> bool:
    """Whether an initializer (`last`), or a module that holds some, cannot have this name."""
    if name in owner._modules:
        return last
    return name in owner._parameters or name in owner._buffers or hasattr(nn.Module, name)


def _is_plain(tensor: Tensor) -> bool:
    """Whole numbers, or a single float: values that operators want to know while they are traced."""
    return tensor.dtype == torch.int64 or (tensor.dim() == 0 and tensor.dtype in (torch.float32, torch.float64))


def _attribute(attribute: Any) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return tensor_from(attribute.t, None)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str):
        return value
    items = list(value)
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in items]


def _constant(item: Any) -> Tensor | None:
    """A Constant node's tensor."""
    attributes = {a.name: _attribute(a) for a in item.attribute}
    if len(item.output) != 1 or len(attributes) != 1:
        raise OnnxError(f"Constant {item.name!r} must have one value and one output")
    ((name, value),) = attributes.items()
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    return value if isinstance(value, Tensor) else None


def _last_uses(program: Sequence[tuple[str, list[str], list[str]]], outputs: Sequence[str]) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for position, (_, reads, makes) in enumerate(program):
        for name in (*reads, *makes):
            last[name] = position
    found: dict[int, list[str]] = {}
    made = {name for _, _, makes in program for name in makes}
    for name, position in last.items():
        if name and name in made and name not in outputs:
            found.setdefault(position, []).append(name)
    return found


def _refuse_unknown(graph: Any) -> None:
    unknown = {
        f"{node.domain + '.' if node.domain not in ('', 'ai.onnx') else ''}{node.op_type}"
        for node in graph.node
        if node.op_type not in IMPORTERS or node.domain not in ("", "ai.onnx")
    }
    if unknown:
        raise OnnxError(
            f"the ONNX file holds operators that cannot be imported: {', '.join(sorted(unknown))}. Quantised models "
            "train in their float form; others can be added with lfpgraph.onnx.imports.table.imports."
        )
