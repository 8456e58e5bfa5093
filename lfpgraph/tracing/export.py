"""Model to ATen graph, by torch.export. `graph.classes` works out afterwards what each node means."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental import _config as _fx_config

from ..errors import DataDependentError, InputError, LfpGraphError, TraceError, text_of
from ..graph.calls import input_tensors
from ..graph.graph import OpGraph, Placeholder
from ..randomness import keep_random_state
from ..threads.silence import quiet
from .autocasts import cast_inside
from .cells import cells_kept_whole, roll_up
from .flat import FlatModel, tracing
from .parts import take_apart, take_apart_all
from .recurrent import autocast_noted
from .rewrite import (
    decompositions,
    few_kept_whole,
    free_detached,
    keep_no_grad,
    no_grad_regions,
    tidy,
    without_idle_dropout,
)
from .written.attributes import attributes_kept
from .written.held import hold_unseen

__all__ = ["capture", "export_flat"]

log = logging.getLogger("lfpgraph")


def _dynamic_dims(tensor: Tensor) -> dict[int, Any] | None:
    """Axes that may change from call to call: batch, and the sequence of token ids and of [n, length, features]."""
    axes = 2 if tensor.dim() == 3 or not tensor.is_floating_point() else 1
    return {axis: Dim.AUTO for axis in range(min(axes, tensor.dim())) if tensor.shape[axis] != 1} or None


def _enlarge(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Make a batch of one, or of none, a batch of two, since torch.export takes these sizes for fixed."""
    batches = {t.shape[0] for t in tensors if t.dim() > 0}
    if batches == {0}:
        return [t.new_zeros(2, *t.shape[1:]) if t.dim() > 0 else t for t in tensors]
    if batches != {1}:
        return list(tensors)
    return [t.expand(2, *t.shape[1:]).clone() if t.dim() > 0 else t for t in tensors]


def capture(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: bool = True, enlarge: bool = True
) -> OpGraph:
    """Trace a model on example inputs (real, fake or meta tensors) to a functional ATen graph.

    Args:
        dynamic: leave batch and sequence sizes open.
        enlarge: leave the size of a batch of one open too, by tracing it as a batch of two.

    Raises:
        DataDependentError: forward decides on a tensor's value.
        TraceError: anything else that keeps torch.export from tracing.
    """
    flat = FlatModel(model, args, kwargs)
    tensors = input_tensors(args, kwargs)
    if not tensors:
        raise InputError(f"{type(model).__name__} was called without a tensor; give it the tensors it computes on.")
    attempts: list[tuple[list[Tensor], Any]] = []
    if dynamic:
        enlarged = [t.detach() for t in (_enlarge(tensors) if enlarge else tensors)]
        attempts.append((enlarged, (tuple(_dynamic_dims(t) for t in enlarged),)))
    attempts.append(([t.detach() for t in tensors], None))  # new objects: torch marks those of a failed attempt as open
    error: Exception | None = None
    for example, shapes in attempts:
        try:
            return export_flat(flat, example, shapes, flat.record)
        except LfpGraphError:
            raise
        except Exception as caught:
            kind = "dynamic" if shapes else "fixed"
            log.info("tracing %s with %s sizes failed: %s", type(model).__name__, kind, caught)
            error = caught
    assert error is not None
    raise _explain(model, error) from error


def _explain(model: nn.Module, error: Exception) -> TraceError:
    """What torch.export raised, as an exception of ours that says where and what to do."""
    text = text_of(error)
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
            'both ways. wrap(model, engine="live") runs the model itself; elsewhere, fallback="retrace" traces this call\'s way.'
        )
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(
        f"{name} could not be traced{where}: {type(error).__name__}: {first[:300]}. Check that the model runs on these "
        'inputs; if it does, wrap(model, engine="live") runs the model itself; elsewhere, fallback="retrace" traces real values.'
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


def export_flat(
    module: nn.Module,
    tensors: Sequence[Tensor],
    shapes: Any,
    record: Any,
    placeholders: list[Placeholder] | None = None,
) -> OpGraph:
    """Export a module of flat tensors, and put its graph into our form.

    Args:
        module, tensors: what to export, and its arguments.
        shapes: dynamic shapes for torch.export; None for fixed ones.
        record: where a run notes the model's true outputs.
        placeholders: what the arguments stand for, where parameters are among them.
    """
    sizes = _fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with keep_random_state(module, tensors), attributes_kept(module), tracing(), torch.enable_grad(), quiet(), sizes:
        program = torch.export.export(module, tuple(tensors), strict=False, dynamic_shapes=shapes)
        without_idle_dropout(program.graph_module)
        hold_unseen(program.graph_module.graph, no_grad_regions(program.graph_module))
        keep_no_grad(program.graph_module)
        free_detached(program.graph_module)
        with autocast_noted():
            written = take_apart_all(program.graph_module)
            program = _functional(program) if written is None else program
            roll_up(program.graph_module.graph)
            take_apart(program.graph_module, cells_kept_whole())
        cast_inside(program.graph_module.graph)
        tidy(program.graph_module)
    _refuse_parameters_as_constants(module, program.constants)
    return _to_graph(program, record, shapes is not None, placeholders, [node.name for node in written or ()])


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Let torch take a program apart, and write none of it in place."""
    table = decompositions(program.graph_module)
    with few_kept_whole(program.graph_module, table):
        program = program.run_decompositions(dict(table))
        while further := decompositions(program.graph_module, done=table):  # parts may themselves have parts
            table |= further
            program = program.run_decompositions(dict(table))
    return program


def _refuse_parameters_as_constants(module: nn.Module, constants: Mapping[str, Any]) -> None:
    """Raise a TraceError where the trace has the memory of a parameter that trains as a constant, and so no way to it."""
    found = {
        x.untyped_storage()._cdata for x in constants.values() if isinstance(x, Tensor) and x.layout is torch.strided
    }
    for name, p in module.named_parameters() if found else ():
        if p.requires_grad and p.layout is torch.strided and p.untyped_storage()._cdata in found:
            raise TraceError(
                f"forward reads the parameter {name.removeprefix('model.')} from elsewhere than its place in the model (a list, "
                'a closure, a global), where a trace takes it for a constant. wrap(model, engine="live") runs the model itself; '
                'elsewhere, fallback="retrace" records what it does.'
            )


_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def _to_graph(
    program: torch.export.ExportedProgram,
    record: Any,
    dynamic: bool,
    arguments: list[Placeholder] | None,
    written: Sequence[str],
) -> OpGraph:
    """A program in our form; its first outputs are what the placeholders `written` hold in the end."""
    constants = {name.removeprefix("model."): value for name, value in program.constants.items()}
    placeholders = _placeholders(program, arguments, constants)
    names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    named = dict(zip(names, placeholders))
    state: dict[int, Any] = {}  # places of changed buffers and parameters among the outputs, and their names
    inputs: dict[int, Any] = {}
    for place, name in enumerate(written):
        (inputs if named[name].kind == "input" else state)[place] = named[name].target
    for place, out in enumerate(program.graph_signature.output_specs, len(written)):
        if out.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            state[place] = str(out.target).removeprefix("model.")
        elif out.kind == OutputKind.USER_INPUT_MUTATION:
            changed = named[str(out.target)]
            (inputs if changed.kind == "input" else state)[place] = changed.target
    n_outputs = len(written) + len(program.graph_signature.output_specs)
    results = [i for i in range(n_outputs) if i not in state and i not in inputs]
    _reorder(program.graph_module, [*state, *inputs, *results])
    return OpGraph(
        module=program.graph_module,
        placeholders=placeholders,
        mutations=list(state.values()),
        out_spec=record.out_spec,
        out_leaves=list(record.out_leaves),
        constants=constants,
        dynamic=dynamic,
        tracer="export",
        input_mutations=list(inputs.values()),
    )


def _placeholders(
    program: torch.export.ExportedProgram, arguments: list[Placeholder] | None, constants: dict[str, Any]
) -> list[Placeholder]:
    """What the arguments of the graph stand for; what a recorded run holds itself is added to its constants."""
    given = (Placeholder("input", i) for i in itertools.count()) if arguments is None else iter(arguments)
    result: list[Placeholder] = []
    for spec in program.graph_signature.input_specs:
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise TraceError(f"the traced graph has an input of a kind not supported yet: {spec.kind}")
        if kind == "input":
            result.append(next(given))
            continue
        target = spec.target.removeprefix("model.") if spec.target else spec.target
        if arguments is not None and kind != "constant":
            constants[str(target)] = program.state_dict[str(spec.target)].detach()
            kind = "constant"
        result.append(Placeholder(kind, target))
    return result


def _reorder(module: fx.GraphModule, places: Sequence[int]) -> None:
    """Return updated buffers first, then updated inputs, then the model's outputs."""
    output = module.graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    if places != list(range(len(results))):
        output.args = (tuple(results[place] for place in places),)
        module.recompile()
