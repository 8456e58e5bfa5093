"""The fallback tracer: records one run on real values. The graph is right for that call only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

from ..errors import TraceError, one_line
from ..graph.calls import input_tensors
from ..graph.graph import OpGraph, Placeholder
from ..randomness import keep_random_state
from ..threads.silence import quiet
from .export import export_flat
from .flat import FlatModel, given, tracing
from .origins import note_lines, noting_places, restore_places

__all__ = ["capture_values"]

log = logging.getLogger("lfpgraph")
_aten = torch.ops.aten
_READ_LENGTHS = (_aten.gru.data, _aten.lstm.data, _aten.rnn_relu.data, _aten.rnn_tanh.data)


def capture_values(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OpGraph:
    """Trace a model whose forward branches on data, for this call's values alone.

    The run is recorded operation by operation, with the numbers that it read from tensors. The record branches on nothing,
    so it is exported like any other model.

    Raises:
        TraceError: the model does not run, or what it does cannot be recorded.
    """
    flat = FlatModel(model, args, kwargs)
    tensors = [t.detach() for t in input_tensors(args, kwargs)]
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    names = [*parameters, *buffers]
    state = [t.detach() for t in (*parameters.values(), *buffers.values())]

    def run(*values: Tensor) -> list[Tensor]:
        with given(model, dict(zip(names, values))):
            return flat(*values[len(names) :])  # type: ignore[no-any-return]

    placeholders = [Placeholder("parameter", name) for name in parameters]
    placeholders += [Placeholder("buffer", name) for name in buffers]
    placeholders += [Placeholder("input", i) for i in range(len(tensors))]
    errors: list[Exception] = []
    for whole in (True, False):  # composite operations whole, then taken apart
        try:
            with _plain_experts(model), noting_places(model):
                recorded = _record(run, [*state, *tensors], whole, dict(enumerate(state)))
            out_spec, out_leaves = flat.record.out_spec, list(flat.record.out_leaves)
            note_lines(recorded)
            graph = export_flat(recorded, [*state, *tensors], None, flat.record, placeholders)
            restore_places(graph.module)
            graph.out_spec, graph.out_leaves, graph.tracer = out_spec, out_leaves, "values"
            log.warning("%s traced on real values: one call's graph, traced anew at every step", type(model).__name__)
            return graph
        except Exception as error:
            errors.append(error)
    message = f"{type(model).__name__} could not be traced on real values: {one_line(errors[0], 300)}"
    raise TraceError(message) from errors[0]


@contextlib.contextmanager
def _plain_experts(model: nn.Module) -> Iterator[None]:
    """Let the expert layers of transformers multiply by plain matrix products, which every tracer knows."""
    config, choose = getattr(model, "config", None), getattr(model, "set_experts_implementation", None)
    before = getattr(config, "_experts_implementation", None)
    if choose is None or before is None:
        yield
        return
    choose("batched_mm")
    try:
        yield
    finally:
        choose(before)


def _record(
    run: Callable[..., Any], values: Sequence[Tensor], whole: bool, state: Mapping[int, Tensor]
) -> fx.GraphModule:
    """The operations of one run, those in place too; values and random generators stay as they were.

    Args:
        run, values: what to run, on copies of what.
        whole: keep composite operations whole.
        state: by position in `values`, the model's own tensors; a run may also reach them past its arguments.

    Raises:
        TraceError: the run takes gradients itself.
    """
    copies = [value.clone() for value in values]
    with keep_random_state(values), tracing(), quiet(), torch.enable_grad(), _no_autograd():
        tracer = make_fx(
            run,
            decomposition_table=_selections() | (_value_readers() if whole else {}),
            tracing_mode="real",
            _error_on_data_dependent_ops=False,
            pre_dispatch=whole,
            record_stack_traces=True,
        )
        recorded = tracer(*copies)
    _find_state(recorded, dict(enumerate(copies)))
    _find_state(recorded, state)
    recorded.graph.eliminate_dead_code(is_impure_node=_stays)
    recorded.recompile()
    return recorded


def _selections() -> dict[Any, Callable[..., Any]]:
    """Operations whose result's size depends on values: places in a tensor, which become constants of the record."""

    def constant(op: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with disable_proxy_modes_tracing():
                return op(*args, **kwargs)

        return run

    def index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
        if not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            return NotImplemented
        places: list[Tensor | None] = []
        for i in indices:
            is_mask = i is not None and i.dtype in (torch.bool, torch.uint8)
            places += constant(_aten.nonzero_numpy.default)(i) if is_mask else [i]
        return _aten.index.Tensor(x, places)

    def masked_select(x: Tensor, mask: Tensor) -> Tensor:
        x, mask = torch.broadcast_tensors(x, mask)
        chosen: Tensor = index(x, [mask])
        return chosen

    places = (
        _aten._unique2.default, _aten.argwhere.default, _aten.nonzero.default, _aten.nonzero_numpy.default,
        _aten.unique_consecutive.default, _aten.where.default,
    )  # fmt: skip
    table: dict[Any, Callable[..., Any]] = {op: constant(op) for op in places}
    return table | {_aten.index.Tensor: index, _aten.masked_select.default: masked_select}


def _value_readers() -> dict[Any, Callable[..., Any]]:
    """Composite operations that read numbers from tensors, which nothing can take apart later: packed sequences."""
    from torch._decomp import decomposition_table

    pad, pack = _aten._pad_packed_sequence.default, _aten._pack_padded_sequence.default
    return {pad: pad.decompose, pack: _pack, **{op: decomposition_table[op] for op in _READ_LENGTHS}}


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The steps of sequences of falling lengths, one after the other, and how many sequences each step has."""
    steps = x.transpose(0, 1) if batch_first else x
    ends: list[int] = lengths.tolist()
    sizes = [sum(end > t for end in ends) for t in range(ends[0])]
    return torch.cat([steps[t, :n] for t, n in enumerate(sizes)]), torch.tensor(sizes)


@contextlib.contextmanager
def _no_autograd() -> Iterator[None]:
    """Refuse autograd inside a run: the record would hold its results as constants."""
    original = torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is None:
            raise TraceError(
                "forward takes gradients itself (torch.autograd.grad), which a record would hold as constants. "
                'wrap(model, engine="live") runs the model itself.'
            )
        return original(*args, **kwargs)

    torch.autograd.grad = grad
    try:
        yield
    finally:
        torch.autograd.grad = original


def _find_state(recorded: fx.GraphModule, state: Mapping[int, Tensor]) -> None:
    """Let the arguments stand for constants of the graph that are the same tensors; `p.data` is detached from p."""
    arguments = [node for node in recorded.graph.nodes if node.op == "placeholder"]
    places = {_memory(tensor): arguments[i] for i, tensor in state.items() if tensor.numel()}
    for node in recorded.graph.nodes:
        value = getattr(recorded, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and (argument := places.get(_memory(value))) is not None:
            if not isinstance(value, nn.Parameter) and not any(map(_stays, node.users)):
                with recorded.graph.inserting_before(node):
                    argument = recorded.graph.call_function(_aten.detach.default, (argument,))
            node.replace_all_uses_with(argument)


def _memory(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return id(tensor)
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _stays(node: fx.Node) -> bool:
    """Whether a node stays though nobody reads it: it changes something. Reading a number from a tensor does not."""
    if node.op in ("placeholder", "output"):
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    return node.op == "call_function" and node.target is torch._C._set_grad_enabled
