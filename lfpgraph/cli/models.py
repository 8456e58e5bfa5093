"""What a command-line TARGET means: a model with example inputs, of fake tensors wherever that is possible.

A TARGET is a transformers model type, a folder or file with a config.json, `module:function`, a name of the zoo
(`zoo:gpt2` where a model type has the same name), a saved exported program (.pt2), or an ONNX file (.onnx). Code from a
hub is never run.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import TargetError, near
from ..graph.calls import arguments_of
from .exported import exported_program
from .fake_models import LARGEST_REAL, ModelTarget, weightless
from .functions import call_target, load_target
from .transformers import builders_of, config_file, model_type, transformers_library

__all__ = ["LARGEST_REAL", "ModelTarget", "builders_of", "resolve_model", "transformers_library", "real_model"]

log = logging.getLogger("lfpgraph")


def resolve_model(target: str) -> ModelTarget:
    """The model that a TARGET names, without weights where it is built here (a type, a configuration, the zoo).

    Raises:
        TargetError: nothing of this name, or it cannot be loaded; one line that says what was tried.
    """
    path = Path(target)
    if target.endswith(".pt2"):
        return exported_program(path)
    if target.endswith(".onnx"):
        return _onnx(path)
    if path.is_dir() or path.suffix == ".json":
        return config_file(path)
    if target.startswith("zoo:"):
        return _zoo(target.removeprefix("zoo:"))
    if ":" in target:
        return _function(target)
    if (found := model_type(target)) is not None:
        return found
    return _zoo(target)


def _onnx(path: Path) -> ModelTarget:
    from ..onnx import load

    model = load(path)
    return ModelTarget(path.name, model, model.example(), {})


def _function(target: str) -> ModelTarget:
    result = call_target(load_target(target), target)
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise TargetError(f"{target!r} must return an nn.Module or (model, inputs), not {type(result).__name__}")
    return ModelTarget(target, model, *((None, None) if inputs is None else arguments_of(inputs, TargetError)))


def _zoo(target: str) -> ModelTarget:
    from ..models_zoo import ZOO, build

    if target not in ZOO:
        names = [*ZOO]
        try:
            names += [*transformers_library().CONFIG_MAPPING]
        except TargetError as error:
            log.info("no model types to suggest: %s", error)
        raise TargetError(
            f"{target!r} is no transformers model type, no zoo name, no folder with a config.json, no .pt2 file and not "
            f"module:function{near(target, names)}"
        )
    return weightless(target, lambda: build(target))


def real_model(target: str, shape: str | None) -> tuple[Any, Any]:
    """The model of a TARGET with real weights, and an example of its inputs.

    Args:
        shape: of one float input without its batch, such as "1,8,8"; None works the inputs out.
    """
    import torch

    from ..inputs.examples import example_inputs

    found = resolve_model(target)
    if found.rebuild is not None:
        found = ModelTarget(found.name, *found.rebuild())
    if shape is not None:
        try:
            sizes = [int(n) for n in shape.split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1 or math.prod(sizes) > LARGEST_REAL:
            raise TargetError(f"--shape {shape[:80]!r} is no list of sizes such as 1,8,8")
        return found.model, torch.randn(2, *sizes)
    args, kwargs = found.args, found.kwargs
    if args is None:
        args, kwargs = example_inputs(found.model)
    given = {name: value for name, value in (kwargs or {}).items() if name != "labels"}
    if args and given:
        raise TargetError(f"{target}: inputs by position and by name together cannot be exported; give one kind")
    return found.model, tuple(args) or given
