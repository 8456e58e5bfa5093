"""Model to ATen graph, by torch.export. What the nodes mean is `classify`'s business."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental import _config as _fx_config
from torch.utils import _pytree as pytree

from ..errors import DataDependentError, InputError, LfpGraphError, TraceError
from ..registry import find_rule
from .graph import OpGraph, Placeholder

__all__ = ["FlatModel", "capture", "is_tracing", "original_forward"]

log = logging.getLogger("lfpgraph")
_state = threading.local()
_aten = torch.ops.aten
_RECURRENT = {
    _aten.gru.data,
    _aten.gru.input,
    _aten.lstm.data,
    _aten.lstm.input,
    _aten.rnn_relu.data,
    _aten.rnn_relu.input,
    _aten.rnn_tanh.data,
    _aten.rnn_tanh.input,
}


def is_tracing() -> bool:
    """Whether this thread is tracing a model, so that wrapped modules must run their own forward."""
    return getattr(_state, "depth", 0) > 0


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Mark this thread as tracing."""
    _state.depth = getattr(_state, "depth", 0) + 1
    try:
        yield
    finally:
        _state.depth -= 1


def original_forward(model: nn.Module) -> Callable[..., Any]:
    """The model's own forward, also where lfpgraph has replaced it."""
    forward = model.forward
    return getattr(forward, "original", forward)


class _Record:
    """Where a run notes its outputs; an object of its own, since torch.export undoes what a module sets on itself."""

    out_spec: Any = None
    out_leaves: list[Any] = []


class FlatModel(nn.Module):
    """A model that takes its tensor leaves as positional arguments and returns a flat list of tensors.

    `record.out_spec` and `record.out_leaves` describe the true output after a run: a leaf is ("tensor", position) or
    ("value", anything else).
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        leaves, self.in_spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.record = _Record()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors):
            leaves[slot] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        output = original_forward(self.model)(*args, **kwargs)
        flat, self.record.out_spec = pytree.tree_flatten(output)
        tensors_out: list[Tensor] = []
        described: list[Any] = []
        for leaf in flat:
            if isinstance(leaf, Tensor):
                described.append(("tensor", len(tensors_out)))
                tensors_out.append(leaf)
            else:
                described.append(("value", _opaque(leaf, tensors_out)))
        self.record.out_leaves = described
        return tensors_out


class _TensorSlot:
    """Stands for a tensor inside an output object that is no pytree, such as a key-value cache."""

    def __init__(self, position: int) -> None:
        self.position = position


def _opaque(value: Any, tensors: list[Tensor]) -> Any:
    """A copy of an arbitrary object with its tensors moved to `tensors` and replaced by slots."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TensorSlot(len(tensors) - 1)
    if isinstance(value, list | tuple):
        return type(value)([_opaque(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _opaque(item, tensors) for key, item in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        if not any(_holds_tensor(item) for item in vars(value).values()):
            return value
        twin = copy.copy(value)
        twin.__dict__ = {key: _opaque(item, tensors) for key, item in vars(value).items()}
        return twin
    return value


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth > 4 or isinstance(value, type | nn.Module):
        return False
    if isinstance(value, list | tuple):
        return any(_holds_tensor(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item, depth + 1) for item in value.values())
    return hasattr(value, "__dict__") and any(_holds_tensor(item, depth + 1) for item in vars(value).values())


def fill_slots(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Undo `_opaque` with this call's tensors."""
    if isinstance(value, _TensorSlot):
        return tensors[value.position]
    if isinstance(value, list | tuple):
        return type(value)([fill_slots(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: fill_slots(item, tensors) for key, item in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        twin = copy.copy(value)
        twin.__dict__ = {key: fill_slots(item, tensors) for key, item in vars(value).items()}
        return twin
    return value


def _dynamic_dims(tensor: Tensor) -> dict[int, Any] | None:
    """Axes that may change from call to call: batch, and the sequence of token ids and of [n, length, features]."""
    axes = 2 if tensor.dim() == 3 or not tensor.is_floating_point() else 1
    return {axis: Dim.AUTO for axis in range(min(axes, tensor.dim()))} or None


def _enlarge(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Repeat axes of size 1 that should be dynamic, since a trace specialises sizes of one."""
    batches = {t.shape[0] for t in tensors if t.dim() > 0}
    result = []
    for tensor in tensors:
        if tensor.dim() > 0 and batches == {1}:
            tensor = tensor.expand(2, *tensor.shape[1:]).clone()
        result.append(tensor)
    return result


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: bool = True) -> OpGraph:
    """Trace a model on example inputs (real, fake or meta tensors) to a functional ATen graph.

    Raises:
        DataDependentError: forward decides on a tensor's value.
        TraceError: anything else that keeps torch.export from tracing.
    """
    flat = FlatModel(model, args, kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(f"{type(model).__name__} was called without a tensor; give it the tensors it computes on.")
    tensors = [t.detach() for t in tensors]
    attempts: list[tuple[list[Tensor], Any]] = []
    if dynamic:
        enlarged = _enlarge(tensors)
        attempts.append((enlarged, (tuple(_dynamic_dims(t) for t in enlarged),)))
    attempts.append((tensors, None))
    error: Exception | None = None
    for example, shapes in attempts:
        try:
            return _export(flat, example, shapes)
        except LfpGraphError:
            raise
        except Exception as caught:
            log.info(
                "tracing %s with %s sizes failed: %s",
                type(model).__name__,
                "dynamic" if shapes else "fixed",
                caught,
            )
            error = caught
    assert error is not None
    raise _explain(model, error) from error


def _explain(model: nn.Module, error: Exception) -> TraceError:
    """Our own exception for what torch.export said."""
    text = str(error)
    name = type(model).__name__
    data_dependent = (
        "data-dependent" in text.lower()
        or "GuardOnDataDependent" in type(error).__name__
        or "unbacked" in text
        or "aten._local_scalar_dense" in text
    )
    where = _user_line(error)
    if data_dependent:
        return DataDependentError(
            f"{name}.forward decides on a tensor's value{where}: {text.splitlines()[0][:200]}. One graph cannot stand for "
            'both ways. Rewrite the branch with torch.where, or wrap with fallback="retrace", which traces anew at every step.'
        )
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(
        f"{name} could not be traced{where}: {type(error).__name__}: {first[:300]}. Check that the model runs on these "
        'inputs; if it does, wrap with fallback="retrace", which traces real values anew at every step.'
    )


def _user_line(error: Exception) -> str:
    """` at file.py:line` of the last frame outside torch, from the exception's traceback."""
    place = ""
    frame = error.__traceback__
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "/torch/" not in file and "lfpgraph" not in file and not file.startswith("<"):
            place = f" at {file.rsplit('/', 1)[-1]}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


def _export(flat: FlatModel, tensors: Sequence[Tensor], shapes: Any) -> OpGraph:
    rng = torch.get_rng_state()
    try:
        with tracing(), torch.enable_grad(), _quiet(), _fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(flat, tuple(tensors), strict=False, dynamic_shapes=shapes)
            _keep_no_grad(program.graph_module)
            program = program.run_decompositions(_decompositions(program.graph_module))
            _tidy(program.graph_module)
    finally:
        torch.set_rng_state(rng)
    return _to_graph(program, flat, dynamic=shapes is not None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's own warnings and log lines from the user."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._export")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _keep_no_grad(module: fx.GraphModule) -> None:
    """Detach what leaves a no_grad region, since inlining the region would forget that no reward passes it."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled":
            continue
        if node.args[0]:
            continue
        for user in list(node.users):
            value = user.meta.get("val")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            with module.graph.inserting_after(user):
                detached = module.graph.call_function(torch.ops.aten.detach.default, (user,))
            detached.meta = dict(user.meta)
            user.replace_all_uses_with(detached, delete_user_cb=lambda other, skip=detached: other is not skip)
    module.recompile()


def _decompositions(module: fx.GraphModule) -> dict[Any, Callable[..., Any]]:
    """How to take apart the operations of a graph that have no rule of their own (composite ops).

    Recurrent layers become their cells and cells their gates; operations that torch defines in terms of others, or has
    a core decomposition for, become those.
    """
    from torch._decomp import core_aten_decompositions, decomposition_table
    from torch._export.utils import _get_decomp_for_cia

    core = core_aten_decompositions()
    table: dict[Any, Callable[..., Any]] = {}
    for graph in (m for m in module.modules() if isinstance(m, fx.GraphModule)):
        for node in graph.graph.nodes:
            op = node.target
            if not isinstance(op, OpOverload) or find_rule(op) is not None or op in table:
                continue
            if op in _RECURRENT:
                table[op] = decomposition_table[op]
            elif op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
                table[op] = _get_decomp_for_cia(op)
            elif op in core:
                table[op] = core[op]
    return table


def _tidy(module: fx.GraphModule) -> None:
    """Remove the tracer's assertions, which compute nothing but look like users of a value; make views tolerant.

    A view is right for the strides that the tracer assumed; a kernel may return others, and reshape takes both.
    """
    for node in reversed(list(module.graph.nodes)):
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        if node.target is _aten.copy.default:
            _copy_as_expand(module, node)
        if (
            node.op == "call_function"
            and getattr(node.target, "__name__", "").startswith("_assert_")
            and not node.users
        ):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _copy_as_expand(module: fx.GraphModule, node: fx.Node) -> None:
    """A functional copy is its source, in the shape and dtype of its first argument; torch has no derivative of it."""
    target, source = node.args[:2]
    with module.graph.inserting_before(node):
        if source.meta["val"].dtype != node.meta["val"].dtype:  # type: ignore[union-attr]
            cast = module.graph.call_function(_aten._to_copy.default, (source,), {"dtype": node.meta["val"].dtype})
            cast.meta = {**node.meta, "val": source.meta["val"].to(node.meta["val"].dtype)}  # type: ignore[union-attr]
            source = cast
    node.target, node.args, node.kwargs = _aten.expand_as.default, (source, target), {}


def _to_graph(program: torch.export.ExportedProgram, flat: FlatModel, dynamic: bool) -> OpGraph:
    kinds = {
        InputKind.PARAMETER: "parameter",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "constant",
        InputKind.USER_INPUT: "input",
    }
    placeholders: list[Placeholder] = []
    for spec in program.graph_signature.input_specs:
        kind = kinds.get(spec.kind)
        if kind is None:
            raise TraceError(f"the traced graph has an input of a kind not supported yet: {spec.kind}")
        if kind == "input":
            target: Any = sum(1 for p in placeholders if p.kind == "input")
        else:
            target = spec.target.removeprefix("model.") if spec.target else spec.target
        placeholders.append(Placeholder(kind, target))
    mutations = []
    input_mutations = []
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    users = [name for name, p in zip(names, placeholders) if p.kind == "input"]
    for out in program.graph_signature.output_specs:
        if out.kind == OutputKind.BUFFER_MUTATION:
            mutations.append(out.target.removeprefix("model."))
        elif out.kind == OutputKind.USER_INPUT_MUTATION:
            input_mutations.append(users.index(out.target))
    constants = {name.removeprefix("model."): value for name, value in program.constants.items()}
    return OpGraph(
        module=program.graph_module,
        placeholders=placeholders,
        mutations=mutations,
        out_spec=flat.record.out_spec,
        out_leaves=list(flat.record.out_leaves),
        constants=constants,
        dynamic=dynamic,
        tracer="export",
        input_mutations=input_mutations,
    )
