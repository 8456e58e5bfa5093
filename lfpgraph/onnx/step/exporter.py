"""Writing ONNX files: a training step, and the forward pass beside it."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...composites.composite import Composite, get_composite
from ...errors import InputError, OnnxError, check_choice, check_count, path_of
from ...graph.calls import arguments_of, state_tensors
from ...modes import eval_mode
from ..operators.builder import Builder
from ..operators.translation import packed, translate
from ..runtime.files import METADATA
from .optimizers import OPTIMIZERS
from .trace import REWARDS, Step, trace_forward, trace_step

__all__ = [
    "export_forward", "export_training_step", "graph_inputs", "input_names", "name_results", "open_axes", "state_inputs",
]  # fmt: skip

FROZEN = ("inputs", "float32", "float16", "int8")
log = logging.getLogger("lfpgraph")


def export_training_step(
    model: nn.Module, example: Any, path: str | Path, reward: str = "softmax", optimizer: str = "sgd",
    composite: str | Composite = "lfp", *, options: Mapping[str, float] | None = None, clip: float | None = None,
    seed: int | None = None, parameters: str = "inside", frozen: str = "inputs", forward: bool = True,
    external_data: bool | None = None,
) -> Path:  # fmt: skip
    """Write one ONNX file that trains the model by feedback, a step at each run. Only standard operators, of opset 20.

    Inputs of the file: the model's own by the names of `forward`'s arguments; `target` (class indices on the outputs'
    leading axes for "softmax", where -100 is left out; a tensor of the outputs' shape for "mse"), or `reward` or `signal`
    of that shape; `lr`; parameters and buffers that change, by the model's own names; the optimizer's state, zeros at first.
    Outputs: `new/` and the name for each of those; the model's own as `output`, `output_1`...; `metric/loss`...

    Args:
        model: any module that traces; the mode it is in is the mode it trains in. Not changed.
        example: a tensor, a tuple of arguments or a dict of keyword arguments, without labels.
        path: the file to write.
        reward: "softmax" for cross-entropy, "mse" for the mean squared error (both as a loss's negative gradient, the
            mean over the batch), "external" for a reward of each output given at each step, "signal" for the reward per unit
            of each output (minus the gradient of a loss there), which unlike a reward is sound where an output is near zero.
        optimizer: "sgd", "momentum" or "adam", with torch's numbers.
        composite: the rules.
        options: the optimizer's numbers, e.g. `{"momentum": 0.95}`.
        clip: scale all feedback to at most this norm.
        seed: lets dropout be drawn by onnxruntime, from this seed; without one, a model that draws is refused.
        parameters: "inside" keeps their values as initializers that may be overridden; "outside" writes them to
            `<stem>.safetensors` beside the file.
        frozen: "inputs" makes frozen parameters inputs of the file as the others are; "float32", "float16" or "int8" (a scale for
            each row) keep their values inside the file alone, stored so.
        forward: also write `<stem>.forward.onnx`, the forward pass in eval mode, for predictions; it holds no values.
        external_data: keep large tensors in `<name>.data` beside the file; None does so from 2 GB on.

    Returns:
        The path of the file.

    Raises:
        OnnxError: an operation without ONNX form, random numbers without seed, unknown options.
        TraceError, NoRuleError, InputError: as for `wrap`.
    """
    path = path_of(path, OnnxError)
    args, kwargs = arguments_of(example, InputError)
    check_choice("frozen", frozen, FROZEN, OnnxError)
    chosen = _optimizer_options(reward, optimizer, parameters, options)
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise OnnxError(f"clip={clip!r} must be a positive number, or None for no clipping")
    if seed is not None:
        check_count("seed", seed, OnnxError, least=0)
    if any(t.dim() and not t.shape[0] for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)):
        raise InputError("the example holds no rows; give it one or two")
    step = trace_step(model, args, kwargs, reward, optimizer, get_composite(composite), chosen, clip, seed)
    names = input_names(model, args, kwargs)
    inside = parameters == "inside"
    b, described = _step_graph(model, step, names, reward, seed, inside, frozen)
    described |= {"optimizer": optimizer, "options": chosen, "clip": clip, "format": 1}
    described["composite"] = get_composite(composite).name
    stored, beside = [*described["parameters"], *described["frozen"], *described["buffers"]], dict[str, Any]()
    if forward:
        described["forward"] = f"{path.stem}.forward.onnx"
        beside[described["forward"]] = _forward_graph(model, args, kwargs, names, set(stored), frozen)
    if not inside:
        described["values"], tensors = f"{path.stem}.safetensors", state_tensors(model)
        beside[described["values"]] = {name: tensors[name].detach().cpu().contiguous().clone() for name in stored}
    b.save(path, {METADATA: json.dumps(described)}, external_data, beside)
    log.info("wrote %s: %d nodes, %d parameters", path, len(b.nodes), len(step.parameters))
    return path


def export_forward(model: nn.Module, example: Any, path: str | Path, *, external_data: bool | None = None) -> Path:
    """Write the forward pass in eval mode with parameters and float buffers as inputs, by the model's own names.

    As the companion that `export_training_step` writes for `OrtTrainer.predict`; arguments and errors as there.
    """
    path = path_of(path, OnnxError)
    args, kwargs = arguments_of(example, InputError)
    _forward_graph(model, args, kwargs, input_names(model, args, kwargs)).save(path, {}, external_data)
    return path


def _optimizer_options(reward: str, optimizer: str, parameters: str, options: Mapping[str, float] | None) -> Any:
    check_choice("reward", reward, REWARDS, OnnxError)
    check_choice("optimizer", optimizer, OPTIMIZERS, OnnxError)
    check_choice("parameters", parameters, ("inside", "outside"), OnnxError)
    defaults = OPTIMIZERS[optimizer].defaults
    if options is not None and not isinstance(options, Mapping):
        raise OnnxError(f"options={options!r} must be a dict of the optimizer's numbers")
    unknown = set(options or {}) - set(defaults)
    if unknown:
        raise OnnxError(f"{optimizer} has no {sorted(unknown)}; it has: {', '.join(defaults) or 'no options'}")
    for name, value in (options or {}).items():
        most = 1.0 if name.startswith("beta") else math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
            raise OnnxError(f"{name}={value!r} must be a number of zero or more" + (", below 1" if most == 1 else ""))
    return {**defaults, **(options or {})}


def input_names(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each tensor among the arguments: the file's, or that of forward's parameter, with its place in a container."""
    if isinstance(getattr(model, "input_names", None), list):  # a loaded ONNX graph
        return [*model.input_names[: len(args)], *kwargs]  # type: ignore[index]
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (AttributeError, TypeError) as error:  # what is no module has no forward
        raise InputError(f"the example does not fit {type(model).__name__}.forward: {error}") from error
    named = {id(leaf): path for path, leaf in pytree.tree_flatten_with_path(dict(bound))[0]}
    names: list[str] = []
    for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))):
        if isinstance(leaf, Tensor):
            name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in named[id(leaf)])
            while name in names:
                name += "_"
            names.append(name)
    return names


def open_axes(step: Step, names: Sequence[str]) -> dict[str, str]:
    """Readable names for open sizes: "batch" for the first axis of the first input, then the input's name and axis."""
    axes: dict[str, str] = {}
    for (kind, target), fake in zip(step.inputs, step.fakes):
        if kind == "input":
            for i, n in enumerate(fake.shape):
                if not isinstance(n, int):
                    label = "batch" if i == 0 and "batch" not in axes.values() else f"{names[target]}_{i}"
                    axes.setdefault(str(n), label)
    return axes


def graph_inputs(
    b: Builder, model: nn.Module, step: Step, names: Sequence[str], given: set[str], values: bool, how: str = "float32"
) -> list[Any]:
    """Values for the step's placeholders; those that are inputs of the file are entered there.

    `given` names the parameters and buffers that are inputs; with `values` they have initializers, too. Every other
    tensor is an initializer alone, parameters stored as `how` says.
    """
    tensors = state_tensors(model)
    found = []
    for (kind, target), fake in zip(step.inputs, step.fakes):
        name = names[target] if kind == "input" else str(target)
        if kind == "input" or name in given:
            found.append(b.input(name, fake))
            if kind != "input" and values:
                b.initializer(found[-1], tensors[name])
        elif kind == "parameter":
            found.append(packed(b, tensors[target], how))
        else:
            found.append(b.constant(step.graph.constants[target] if kind == "constant" else tensors[target]))
    return found


def _step_graph(
    model: nn.Module, step: Step, names: Sequence[str], reward: str, seed: int | None, inside: bool, how: str
) -> tuple[Builder, dict[str, Any]]:
    b = Builder(type(model).__name__, open_axes(step, names), seed)
    still = [name for kind, name in step.inputs if kind == "parameter" and name not in step.parameters]
    frozen = still if how == "inputs" else []
    stored = [*step.parameters, *frozen, *step.buffers]
    values = graph_inputs(b, model, step, names, set(stored), inside, how)
    target = {"external": "reward", "signal": "signal"}.get(reward, "target")
    extra = [target, "lr", *step.state]
    values += [b.input(name, fake) for name, fake in zip(extra, step.fakes[len(step.inputs) :])]
    results = translate(b, step.module, values)
    open_names = {*names, target}
    changing = [*step.parameters, *step.buffers, *step.state]
    outputs = [f"output_{i}" if i else "output" for i in range(len(results) - len(changing) - len(step.metrics))]
    titles = [*(f"new/{name}" for name in changing), *outputs, *(f"metric/{name}" for name in step.metrics)]
    described = {
        "inputs": [names[index] for kind, index in step.inputs if kind == "input"],
        "target": target,
        "example": {v.name: _hinted(fake) for v, fake in zip(values, step.fakes) if v.name in open_names},
        "parameters": step.parameters,
        "frozen": frozen,
        "buffers": step.buffers,
        "state": step.state,
        "outputs": outputs,
        "metrics": step.metrics,
        "aliases": step.aliases,
        "reward": reward,
    }
    if inside:  # so that a runtime alone can read what the file begins with
        of = dict(zip([target for _, target in step.inputs], values))
        titles += [f"value/{name}" for name in stored]
        results += [of[name] for name in stored]
    name_results(b, titles, results)
    return b, described


def _hinted(fake: Tensor) -> list[int]:
    """The shape that the example had."""
    return [n if isinstance(n, int) else int(n.node.hint) for n in fake.shape]


def name_results(b: Builder, titles: Sequence[str], results: Sequence[Any]) -> None:
    """Enter results as outputs of the file, under their names."""
    for title, result in zip(titles, results):
        if result is not None:
            b.output(title, result)


def state_inputs(model: nn.Module, step: Step) -> set[str]:
    """The names of a step's parameters and float buffers."""
    tensors = state_tensors(model)
    floats = {name for kind, name in step.inputs if kind == "buffer" and tensors[name].is_floating_point()}
    return floats | {name for kind, name in step.inputs if kind == "parameter"}


def _forward_graph(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str], kept: set[str] | None = None,
    how: str = "float32",
) -> Builder:  # fmt: skip
    with eval_mode(model):
        step = trace_forward(model, args, kwargs)
    b = Builder(type(model).__name__, open_axes(step, names))
    given = state_inputs(model, step) if kept is None else kept
    results = translate(b, step.module, graph_inputs(b, model, step, names, given, False, how))
    name_results(b, [f"output_{i}" if i else "output" for i in range(len(results))], results)
    return b
