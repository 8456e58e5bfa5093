"""What a command-line TARGET means: a model with example inputs, of fake tensors wherever that is possible.

A TARGET is a transformers model type, a folder or file with a config.json, `module:function`, a name of the zoo (`zoo:gpt2`
where a model type has the same name), a saved exported program (.pt2), or an
ONNX file (.onnx). Code from a hub is never run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .errors import TargetError, first_line, near
from .targets import load_target

__all__ = ["LARGEST_REAL", "ModelTarget", "builders_of", "resolve_model", "transformers_library"]

log = logging.getLogger("lfpgraph")
LARGEST_REAL = 1_000_000_000  # parameters of a model that may be made with weights to be traced: 4 GB in float32
# Heads in order of choice for a configuration that names no class of its own.
_HEADS = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModelForCTC",
    "AutoModelForObjectDetection",
    "AutoModelForUniversalSegmentation",
    "AutoModelForSemanticSegmentation",
    "AutoModelForDepthEstimation",
    "AutoModelForAudioClassification",
    "AutoModelForVideoClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForPreTraining",
    "AutoModel",
)


Built = tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any] | None]


@dataclass
class ModelTarget:
    """A model to report on. `args` and `kwargs` are None where inputs are to be worked out from the model.

    `rebuild` gives the same model and inputs of real tensors, where those here are fake.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    rebuild: Callable[[], Built] | None = field(default=None, repr=False)


def resolve_model(target: str) -> ModelTarget:
    """The model that a TARGET names, without weights where it is built here (a type, a configuration, the zoo).

    Raises:
        TargetError: nothing of this name, or it cannot be loaded; one line that says what was tried.
    """
    path = Path(target)
    if target.endswith(".pt2"):
        return _exported(path)
    if target.endswith(".onnx"):
        return _onnx(path)
    if path.is_dir() or path.suffix == ".json":
        return _config_file(path)
    if target.startswith("zoo:"):
        return _zoo(target.removeprefix("zoo:"))
    if ":" in target:
        return _function(target)
    if (found := _model_type(target)) is not None:
        return found
    return _zoo(target)


def _exported(path: Path) -> ModelTarget:
    if not path.is_file():
        raise TargetError(f"no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
        model = program.module()
        args, kwargs = program.example_inputs or ((), {})
    except Exception as error:
        raise TargetError(f"{path} is no exported program: {type(error).__name__}: {first_line(error)}") from error
    if not args and not kwargs:
        raise TargetError(f"{path} carries no example inputs; save it with torch.export.save after torch.export.export")
    return ModelTarget(path.name, model, tuple(args), dict(kwargs))


def _onnx(path: Path) -> ModelTarget:
    from .onnx import load

    model = load(path)
    return ModelTarget(path.name, model, model.example(), {})


def _config_file(path: Path) -> ModelTarget:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise TargetError(f"no config.json in {path}" if path.is_dir() else f"no such file: {path}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TargetError(f"{file} is not JSON: {first_line(error)}") from error
    if not isinstance(values, dict) or not values.get("model_type"):
        raise TargetError(f"{file} has no model_type, so it is no configuration of a transformers model")
    if "auto_map" in values:
        raise TargetError(
            f"{file} asks to run code from a hub (auto_map), which is never done; load the model yourself"
        )
    auto = transformers_library()
    kind = values["model_type"]
    if kind not in auto.CONFIG_MAPPING:
        raise TargetError(f"{file}: model_type {kind!r} is not known to transformers{near(kind, auto.CONFIG_MAPPING)}")
    try:
        config = auto.CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:
        raise TargetError(f"{file}: {type(error).__name__}: {first_line(error)}") from error
    return _from_config(config, path.resolve().name if path.is_dir() else str(path))


def _model_type(name: str) -> ModelTarget | None:
    try:
        auto = transformers_library()
    except TargetError:
        return None
    if name not in auto.CONFIG_MAPPING:
        return None
    try:
        config = auto.CONFIG_MAPPING[name]()
    except Exception as error:
        raise TargetError(f"{name}: no default configuration: {type(error).__name__}: {first_line(error)}") from error
    return _from_config(config, name)


def transformers_library() -> Any:
    """The package, offline and quiet.

    Raises:
        TargetError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise TargetError("transformers is not installed; pip install lfpgraph[hf]") from error
    transformers.logging.set_verbosity_error()
    return transformers


def builders_of(config: Any, name: str) -> list[Callable[[Any], nn.Module]]:
    """How a configuration can become a model: by the classes it names, then by the heads that take it.

    Raises:
        TargetError: transformers has no model for it.
    """
    transformers = transformers_library()
    named: list[Any] = [getattr(transformers, n, None) for n in getattr(config, "architectures", None) or []]
    builders = [cls._from_config for cls in named if hasattr(cls, "_from_config")]
    for head in _HEADS:
        auto = getattr(transformers, head, None)
        if auto is not None and type(config) in auto._model_mapping:
            builders.append(lambda config, auto=auto: auto.from_config(config, trust_remote_code=False))
    if not builders:
        raise TargetError(f"{name}: transformers has no model for {type(config).__name__}")
    return builders


def _from_config(config: Any, name: str) -> ModelTarget:
    """The model of a configuration."""
    builders = builders_of(config, name)

    def build() -> Built:
        errors = []
        for builder in builders:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return _plain_experts(builder(config)), None, None
            except Exception as error:
                errors.append(f"{type(error).__name__}: {first_line(error)}")
        raise TargetError(f"{name}: the model cannot be built: {errors[0]}")

    return _weightless(name, build)


def _plain_experts(model: nn.Module) -> nn.Module:
    """Expert layers by plain matrix products: the default kernel of transformers is known to no fake or meta tensor."""
    choose: Any = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("batched_mm")
    return model


def _weightless(name: str, build: Callable[[], Built]) -> ModelTarget:
    """What `build` gives, of fake tensors; of real ones where its constructor needs values."""
    error: Exception | None = None
    for drawing in (contextlib.nullcontext, _no_initial_values):
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), drawing():
                model, args, kwargs = build()
            if drawing is _no_initial_values and hasattr(model, "tie_weights"):
                getattr(model, "tie_weights")()  # noqa: B009 - transformers ties when it draws
            return ModelTarget(name, model, args, kwargs, rebuild=build)
        except Exception as caught:
            log.info("%s cannot be built without weights: %s", name, first_line(caught))
            error = caught
    if (size := _size_on_meta(build)) > LARGEST_REAL:
        raise TargetError(
            f"{name} cannot be built without weights, and has {size:,} of them: {first_line(error)}"
        ) from error
    try:
        return ModelTarget(name, *build())
    except TargetError:
        raise
    except Exception as again:
        raise TargetError(f"{name} cannot be built: {type(again).__name__}: {first_line(again)}") from again


@contextlib.contextmanager
def _no_initial_values() -> Iterator[None]:
    """Let transformers leave weights as they are: some ways to draw them read numbers, of which fake tensors have none."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        yield
        return
    with no_init_weights():
        yield


def _size_on_meta(build: Callable[[], Built]) -> int:
    """How many parameters the model has; 0 where that cannot be told without making them."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build()[0].parameters())
    except Exception:
        return 0


def _function(target: str) -> ModelTarget:
    function = load_target(target)
    try:
        result = function()
    except Exception as error:
        raise TargetError(f"{target!r} failed: {type(error).__name__}: {first_line(error)}") from error
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise TargetError(f"{target!r} must return an nn.Module or (model, inputs), not {type(result).__name__}")
    args, kwargs = split_inputs(inputs)
    return ModelTarget(target, model, args, kwargs)


def split_inputs(inputs: Any) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
    """Inputs as a user writes them (tensor, tuple, dict, or None) as args and kwargs."""
    if inputs is None:
        return None, None
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _zoo(target: str) -> ModelTarget:
    from .models_zoo import ZOO, build

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
    return _weightless(target, lambda: build(target))
