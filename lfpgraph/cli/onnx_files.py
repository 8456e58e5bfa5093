"""The command line's `lfpgraph export`: a model, its forward pass, training step or relevance as an ONNX file."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import TargetError, near, one_line
from .reports import STDOUT, Epsilon, JsonFile, Target, finite, give_json, writable

__all__ = ["export"]

_KINDS = ("model", "step", "forward", "attribution")


def export(
    target: Target,
    out: Annotated[Path | None, typer.Argument(help="The file to write, ending in .onnx.")] = None,
    train_step: Annotated[
        Path | None, typer.Option(help="Write a step to this file: short for FILE --what step.")
    ] = None,
    trainable: Annotated[
        list[str] | None,
        typer.Option(help='Which parameters train, shell style, such as "decoder.*"; may be repeated. Else all.'),
    ] = None,
    what: Annotated[
        str,
        typer.Option(
            help="model (with its weights, for inference), step (a feedback-training step, and the forward pass beside "
            "it), forward (the forward pass with the weights as inputs) or attribution (outputs and the relevance of "
            "the inputs)."
        ),
    ] = "model",
    shape: Annotated[
        str | None, typer.Option(help="Shape of one float input without its batch, e.g. 1,8,8; else worked out.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights to load first (.safetensors).")] = None,
    reward: Annotated[str, typer.Option(help="Of a step: softmax, mse, external or signal.")] = "softmax",
    optimizer: Annotated[str, typer.Option(help="Of a step: sgd, momentum or adam.")] = "adam",
    composite: Annotated[
        str | None, typer.Option(help="Which rules to use: lfp in a step, attnlrp for relevance by default.")
    ] = None,
    epsilon: Epsilon = None,
    clip: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Of a step: largest norm of the feedback; 0 for none.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Lets a step draw dropout, from this seed.")
    ] = None,
    outside: Annotated[bool, typer.Option(help="Keep a step's values in a .safetensors file beside it.")] = False,
    external_data: Annotated[
        bool, typer.Option(help="Keep large tensors in a file beside it, whatever their size; from 2 GB on they are.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Write a model, or a whole training step that runs without torch, as an ONNX file."""
    from ..composites.composite import get_composite
    from .models import real_model

    if what not in _KINDS:
        raise TargetError(f"--what {what!r} is not known; choose one of {', '.join(_KINDS)}")
    path, what = (out, what) if train_step is None else (train_step, "step")
    if path is None or (out is not None and train_step is not None):
        raise TargetError("give one file to write: OUT, or --train-step FILE")
    rules = get_composite(composite or ("attnlrp" if what == "attribution" else "lfp"))
    rules = rules if epsilon is None else rules.with_options(epsilon=epsilon)
    writable(json_file, replaced=path)  # a file that does not agree with the model is removed
    model, example = real_model(target, shape)
    if weights is not None:
        _load(model, weights)
    if trainable:
        _freeze(model, trainable)
    from .. import onnx

    external = external_data or None
    if what == "model":
        onnx.export(model, path, example, external_data=external)
    elif what == "forward":
        onnx.export_forward(model, example, path, external_data=external)
    elif what == "attribution":
        onnx.export_attribution(model, example, path, rules, external_data=external)
    else:
        onnx.export_training_step(
            model, example, path, reward, optimizer, rules, clip=clip or None, seed=seed,
            parameters="outside" if outside else "inside", external_data=external,
        )  # fmt: skip
    give_json(json_file, lambda: {"kind": what, "file": str(path), "bytes": path.stat().st_size, **_interface(path)})
    if json_file != STDOUT:
        typer.echo(f"{what}: {path}")


def _interface(path: Path) -> dict[str, Any]:
    """Names and shapes of what a file takes and gives."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kept = {value.name for value in graph.initializer}

    def described(values: Any) -> dict[str, list[int | str]]:
        return {
            value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in values
            if value.name not in kept
        }

    return {"inputs": described(graph.input), "outputs": described(graph.output)}


def _freeze(model: Any, patterns: list[str]) -> None:
    """Let only parameters train whose names fit one of the patterns."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not fnmatch.filter(parameters, pattern):
            raise TargetError(f"no parameter is named like {pattern!r}{near(pattern, list(parameters))}")
    for name, parameter in parameters.items():
        fits = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(fits and parameter.requires_grad)


def _load(model: Any, path: Path) -> None:
    import torch
    from safetensors.torch import load_file, load_model

    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # reading a pipe may never end
        own = model.state_dict()
        for name, value in load_file(path).items():  # of which torch would drop imaginary parts, or fractions
            if name in own and not torch.can_cast(value.dtype, own[name].dtype):
                raise ValueError(f"{name} is of type {value.dtype} there, and of {own[name].dtype} in the model")
        load_model(model, str(path))
    except Exception as error:  # OSError, SafetensorError, RuntimeError of a missing name
        raise TargetError(f"{path} does not fit the model: {one_line(error, 300)}") from error
