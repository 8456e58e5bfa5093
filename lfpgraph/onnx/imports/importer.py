"""ONNX files as modules: `load` makes an `nn.Module` that traces, wraps, trains and explains like any other."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from ...errors import OnnxError, one_line
from ...threads.silence import quiet
from ...tracing.flat import is_tracing
from ..registry import DTYPES
from . import contrib, elementwise, layers, norms, places, quantised, sequences, shapes  # noqa: F401  (they fill the table)
from .files import read_model
from .programs import Line, Program, Reader, refilled, refuse_unknown
from .table import IMPORTERS, LARGEST, Known, Node, dtype_of, operator_of, tensor_of
from .weights import Dequantised, dequantised, is_weight, weights_of

__all__ = ["OnnxModel", "load"]

log = logging.getLogger("lfpgraph")

_SMALL, _DEEPEST = 64, 50  # numbers of a constant that Python knows; modules one in another
_MOST_ROUNDS = 2**20  # of all the loops of a file in one call


def load(
    source: Any, *, trainable: Callable[[str, Tensor], bool] | Sequence[str] | None = None, dequantise: bool = False
) -> OnnxModel:  # fmt: skip
    """An ONNX model as an `nn.Module`, with one submodule for each node.

    Initializers and Constant nodes, those of subgraphs too, keep their names. Parameters are those of a float type, with
    finite values, that are read (through views, casts and joins too) as the weight or bias of a convolution, matrix
    product, norm, recurrence, PRelu or embedding; or that have more than one element and are added, subtracted or
    multiplied. All others, running statistics of batch norms and quantised weights among them, are buffers. Batch norms
    and dropout run as in eval mode; a file that has them in training mode is refused.

    Args:
        source: a path, the bytes of a file, or a ModelProto.
        trainable: in place of that rule, a function of name and tensor, or patterns of names (shell style); only float
            initializers can train.
        dequantise: quantised weights train too. Each becomes a float parameter `NAME.value`, which operators get in the units of
            the stored numbers, so the outputs stay; activations are rounded as ever. Not those of MatMulNBits.

    Raises:
        OnnxError: the file is broken or hostile, or holds operators that are not known, all of them named.
    """
    try:
        return OnnxModel(source, trainable, dequantise)
    except OnnxError:
        raise
    except Exception as error:
        raise OnnxError(f"the ONNX file is broken: {type(error).__name__}: {one_line(error)}") from error


class _Step(nn.Module):
    """One node; a submodule, so that reports and composites can name it."""

    def __init__(self, node: Node, operator: str) -> None:
        super().__init__()
        self.node, self.operator = node, operator

    def forward(self, *inputs: Any) -> Any:
        return IMPORTERS[self.operator](self.node, *inputs)

    def extra_repr(self) -> str:
        return self.node.kind


class OnnxModel(nn.Module):
    """A loaded ONNX graph. Made by `load`.

    Attributes:
        input_names, output_names: as the file has them, in the order of forward's arguments and results.
    """

    def __init__(self, source: Any, trainable: Any, dequantise: bool) -> None:
        super().__init__()
        self.source, (proto, file) = source, read_model(source)
        graph = proto.graph
        version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        initializers = {t.name for t in graph.initializer}
        self.input_info = [i for i in graph.input if i.name not in initializers]
        self.input_names = [i.name for i in self.input_info]
        self.output_names = [o.name for o in graph.output]
        self.constants: dict[str, Known] = {}
        self.paths: dict[str, str] = {}
        reader = Reader(file)
        self._program = reader.program(graph)
        lines = list(self._program.everything())
        refuse_unknown(lines)
        chosen, floats = weights_of(reader.tensors, lines), dequantised(reader.tensors, lines)
        if dequantise:
            chosen -= {held.source for held in floats.values()}
        for name, tensor in reader.tensors.items():
            self._store(name, tensor, chosen, trainable, floats.get(name) if dequantise else None)
        if floats and not dequantise and not [*self.parameters()]:
            log.warning("all weights of the file are quantised, so none trains; load(..., dequantise=True) trains them")
        self.steps = nn.ModuleDict()
        for position, line in enumerate(lines):
            self._add(position, line, version)
        self._branches = any(line.bodies for line in lines)
        self._declared = [_whole_type(o) for o in graph.output]
        self._measured: set[Any] = set()

    def _store(self, name: str, tensor: Tensor, chosen: set[str], trainable: Any, floats: Dequantised | None) -> None:
        """Keep an initializer as a parameter, a buffer or a known number."""
        trains = (floats or tensor.is_floating_point()) and is_weight(name, tensor, chosen, trainable)
        small = tensor.dim() <= 1 and tensor.numel() <= _SMALL
        if not trains and small and (_is_plain(tensor) or f"{name}\0size" in chosen):
            self.constants[name] = Known(tensor.tolist(), tensor.dtype)
            return
        owner, path = self._place(name)
        if trains and floats:
            owner.add_module(path[-1], floats)
        elif trains:
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

    def _add(self, position: int, line: Line, version: int) -> None:
        item = line.item
        read = max((i + 1 for i, name in enumerate(item.output) if name), default=0)
        node = Node(item.op_type, item.name or item.op_type, version, line.attributes, read)
        title = re.sub(r"\W+", "_", item.name or item.op_type).strip("_") or "node"
        if title in self.steps or hasattr(self.steps, title):
            title = f"{title}_{position}"
        self.steps[title] = _Step(node, operator_of(item))
        line.title = title

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for the inputs, in the file's order or by its names: a tensor, or a tuple of several."""
        given = dict(zip(self.input_names, inputs))
        if len(inputs) > len(self.input_names) or set(named) & set(given) or {*given, *named} != set(self.input_names):
            raise OnnxError(f"the model takes {', '.join(self.input_names)}; {len(inputs) + len(named)} inputs came")
        env: dict[str, Any] = {"": None, **given, **named, **self.constants}
        for name, path in self.paths.items():
            held = attrgetter(path)(self)
            env[name] = held() if isinstance(held, Dequantised) else held
        run = _Run(None)
        if not is_tracing() and not torch.compiler.is_exporting():
            sizes = "", tuple(_size_of(env[name]) for name in self.input_names)
            if self._branches or sizes not in self._measured:
                run.mode = FakeTensorMode(allow_non_fake_inputs=True)
        found = self._run(self._program, env, run)
        if run.mode is not None:
            self._measured.add(sizes)
        results = tuple(_as_declared(tensor_of(value), dtype) for value, dtype in zip(found, self._declared))
        return results[0] if len(results) == 1 else results

    def _run(self, program: Program, env: dict[str, Any], run: _Run) -> list[Any]:
        """Run the nodes on the values in `env` and return the outputs."""

        def inside(body: Program, values: list[Any]) -> list[Any]:
            run.rounds += 1
            if run.rounds > _MOST_ROUNDS:
                raise OnnxError(f"the loops of the file run more than {_MOST_ROUNDS:,} rounds.")
            env.update(zip(body.inputs, values))
            return self._run(body, env, run)

        for position, line in enumerate(program.lines):
            step, values = self.steps[line.title], [env[name] for name in line.reads]
            if line.bodies:
                values.insert(0, inside)
            elif run.mode is not None:
                self._refuse_absurd(line.title, values, run.mode)
            try:
                found = step(*values)
            except OnnxError:
                raise
            except Exception as error:
                if is_tracing():
                    raise
                message = f"{step} ({line.title}) cannot run on these inputs: {one_line(error)}"
                raise OnnxError(message) from error
            env.update(zip(line.makes, found if isinstance(found, tuple) else (found,)))
            for name in program.last.get(position, ()):
                env.pop(name, None)
        return [env[name] for name in program.outputs]

    def _refuse_absurd(self, title: str, values: list[Any], mode: FakeTensorMode) -> None:
        """Before a node runs on inputs of new sizes, work out the shapes it makes, and refuse huge ones."""
        key = title, tuple(_size_of(value) for value in values)
        if key in self._measured:
            return
        step: Any = self.steps[title]
        with quiet(), mode, torch.no_grad():
            fakes = pytree.tree_map_only(Tensor, mode.from_tensor, values)
            try:
                made = step.forward(*fakes)
            except Exception as error:
                if isinstance(error, OnnxError) and "elements" in str(error):
                    raise
                made = ()  # what depends on data has no shape yet; other errors are the run's own to tell
        for value in made if isinstance(made, tuple) else (made,):
            if isinstance(value, Tensor) and (size := value.numel()) > LARGEST:
                asks = f"{size:.3g} elements: {list(value.shape)}"
                raise OnnxError(f"{step.node.kind} {step.node.name!r} asks for a tensor of {asks}")
        if self._branches and len(self._measured) < _MOST_ROUNDS:
            self._measured.add(key)

    def as_file(self) -> Any:
        """The file it was loaded from, with parameters and buffers as they are now; None if one of them has no place there."""
        held = {name: attrgetter(path)(self) for name, path in self.paths.items()}
        return refilled(self.source, held) if all(isinstance(t, Tensor) for t in held.values()) else None

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
            given = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]  # Paddle writes -1, too
            sizes = [(batch if i == 0 else 8) if n == -1 else n for i, n in enumerate(given)]
            if any(n < 0 for n in sizes) or math.prod(sizes) > LARGEST or len(sizes) > 64:
                raise OnnxError(f"input {info.name!r} has an absurd shape: {sizes}")
            dtype = dtype_of(kind.elem_type)
            whole = not dtype.is_floating_point
            drawn = torch.randint(0, 2, sizes, generator=draw) if whole else torch.randn(sizes, generator=draw)
            found.append(drawn.to(dtype))
        return tuple(found)


def _taken(owner: nn.Module, name: str, last: bool) -> bool:
    """Whether an initializer (`last`), or a module that holds some, cannot have this name."""
    if name in owner._modules:
        return last
    return name in owner._parameters or name in owner._buffers or hasattr(nn.Module, name)


def _is_plain(tensor: Tensor) -> bool:
    """Whole numbers, or a single float: values that operators want to know while they are traced."""
    kinds = {torch.int32, torch.int64} | (set() if tensor.dim() else {torch.float32, torch.float64})
    return tensor.dtype in kinds


@dataclass
class _Run:
    """One call: the mode that works out shapes before nodes run, if they are to be checked, and the rounds of loops."""

    mode: FakeTensorMode | None
    rounds: int = 0


def _size_of(value: Any) -> Any:
    if isinstance(value, Known):
        return tuple(value.items.flat), value.items.shape
    return tuple(value.shape) if isinstance(value, Tensor) else len(value) if isinstance(value, list) else None


def _whole_type(info: Any) -> torch.dtype | None:
    """The type of whole numbers that an output is declared to have."""
    dtype = DTYPES.get(info.type.tensor_type.elem_type)
    return None if dtype is None or dtype.is_floating_point else dtype


def _as_declared(value: Any, dtype: torch.dtype | None) -> Any:
    """Quantised values are whole numbers in a float tensor, so that feedback can pass; at an output they get their type."""
    return value.to(dtype) if dtype is not None and isinstance(value, Tensor) and value.is_floating_point() else value
