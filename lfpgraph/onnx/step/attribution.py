"""`export_attribution`: a model and the relevance of its inputs as one ONNX file, so that a deployed model explains itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...composites.composite import Composite, get_composite
from ...engine.plan import make_plan
from ...engine.propagate import run_backward, run_forward
from ...errors import InputError, OnnxError, check_choice, path_of
from ...explain.batch_norms import merge_norms
from ...explain.readings import Reading, of_tokens, readings_of
from ...graph.calls import arguments_of
from ...modes import eval_mode
from ..operators.builder import Builder
from ..operators.translation import translate
from ..runtime.files import METADATA
from .exporter import graph_inputs, input_names, name_results, open_axes, state_inputs
from .trace import Step, static, traced

__all__ = ["export_attribution"]


def export_attribution(
    model: nn.Module, example: Any, path: str | Path, composite: str | Composite = "attnlrp", *,
    target: int | str = "predicted", parameters: str = "inside", external_data: bool | None = None,
) -> Path:  # fmt: skip
    """Write one ONNX file from the model's inputs to its outputs and the relevance of its inputs, in eval mode.

    Inputs of the file: the model's own, by the names of `forward`'s arguments. Outputs: `output`, `output_1`..., and
    `relevance/NAME` for each input, with the numbers of `lfpgraph.attribute`: of the input's shape, for token ids
    [n, length] that of their embeddings summed over features. The batch may have any size.

    Args:
        model: any module that traces; not changed.
        example: a tensor, a tuple of arguments or a dict of keyword arguments.
        path: the file to write.
        composite: the rules.
        target: what is explained of the first float output: "predicted" for its largest entry in the last dimension, a
            class index there, or "weights" for an input of the file, `weights`, of the output's shape: the explained value
            is the sum of output times weights.
        parameters: "inside" keeps their values in the file; "inputs" makes parameters and float buffers inputs by the model's
            own names, so that the file explains what a training step has made of them.
        external_data: keep large tensors in `<name>.data` beside the file; None does so from 2 GB on.

    Returns:
        The path of the file.

    Raises:
        OnnxError: an operation without ONNX form, an unknown target. TraceError, NoRuleError, InputError: as for `attribute`.
    """
    path = path_of(path, OnnxError)
    if isinstance(target, bool) or not (isinstance(target, int) or target in ("predicted", "weights")):
        raise OnnxError(f'target={target!r} is not known; give a class index, "predicted" or "weights"')
    check_choice("parameters", parameters, ("inside", "inputs"), OnnxError)
    args, kwargs = arguments_of(example, InputError)
    names = input_names(model, args, kwargs)
    rules = get_composite(composite)
    with eval_mode(model):
        step, readings = _traced(model, args, kwargs, rules, target)
    b = Builder(type(model).__name__, open_axes(step, names))
    values = graph_inputs(b, model, step, names, state_inputs(model, step) if parameters == "inputs" else set(), False)
    if target == "weights":
        values.append(b.input("weights", step.fakes[-1]))
    results = translate(b, step.module, values)
    explained = [f"relevance/{names[index]}" for index in readings]
    titles = [f"output_{i}" if i else "output" for i in range(len(results) - len(explained))]
    name_results(b, [*titles, *explained], results)
    described = {"composite": rules.name, "target": target, "outputs": titles, "relevance": explained, "format": 1}
    b.save(path, {METADATA.replace("training_step", "attribution"): json.dumps(described)}, external_data)
    return path


def _traced(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], composite: Composite, target: int | str
) -> tuple[Step, list[int]]:
    """The walk as one graph, and the places among the call's tensors of the inputs that it gives relevance to, in order."""
    graph, inputs, places, fakes, _ = traced(model, args, kwargs, None)
    if composite.merge_norms:
        merge_norms(graph)
    readings = readings_of(graph)
    nodes = [reading.node for reading in readings]
    plan = make_plan(graph, composite, set(nodes), values=graph.values_of_call(model, args, kwargs))
    rewarded = graph.rewarded_node
    if rewarded is None:
        raise OnnxError("the model has no float output with at least one dimension to explain.")
    if rewarded not in plan.wanted:
        raise OnnxError("the model's first float output does not depend on its inputs in a way that rules follow.")
    output = rewarded.meta["val"]
    if isinstance(target, int) and not -output.shape[-1] <= target < output.shape[-1]:
        raise OnnxError(f"target={target} is out of range for the output of shape {list(output.shape)}")
    n, relevant = len(inputs), sorted({reading.name for reading in readings})

    def run(*given: Any) -> list[Any]:
        outputs, calls, env = run_forward(plan, [given[i] for i in places])
        signal = given[n] if target == "weights" else _one_hot(env[rewarded], target)
        record: dict[fx.Node, Any] = dict.fromkeys(nodes)
        run_backward(plan, calls, env, {rewarded: signal}, record=record)
        return [*outputs[len(graph.mutations) :], *(_relevance(readings, record, env, at) for at in relevant)]

    if target == "weights":
        with output.fake_mode:
            fakes = [*fakes, torch.empty_like(output)]
    return Step(static(run, fakes), graph, inputs, fakes), relevant


def _one_hot(output: Tensor, target: int | str) -> Tensor:
    """Ones at the class that is explained, in the last dimension."""
    classes = torch.arange(output.shape[-1], device=output.device)
    if isinstance(target, int):
        chosen = (classes == target % int(output.shape[-1])).expand(output.shape)
    else:
        chosen = output.argmax(-1, keepdim=True) == classes
    return chosen.to(output.dtype)


def _relevance(readings: Sequence[Reading], record: dict[fx.Node, Any], env: dict[fx.Node, Any], at: int) -> Tensor:
    """The relevance of one input: zeros where none has arrived, else all that has."""
    total: Any = None
    for reading in readings:
        if reading.name == at:
            arrived = record[reading.node]
            arrived = torch.zeros_like(env[reading.node]) if arrived is None else arrived
            arrived = of_tokens(reading.slot, arrived) if reading.kind == "tokens" else arrived
            total = arrived if total is None else total + arrived
    return total  # type: ignore[no-any-return]
