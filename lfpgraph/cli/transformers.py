"""Command-line targets of transformers: model types and configurations. Code from a hub is never run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import TargetError, first_line, near
from ..threads.silence import quiet
from .fake_models import Built, ModelTarget, weightless
from .limits import limited, told

__all__ = ["builders_of", "config_file", "model_type", "transformers_library"]

_LARGEST = 20 * 2**20  # bytes of a configuration; the longest hold the names of tens of thousands of classes
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


def config_file(path: Path) -> ModelTarget:
    """The model of a folder with a config.json, or of such a file.

    Raises:
        TargetError: no such file, no configuration, or one of a model that cannot be built.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise TargetError(f"no config.json in {path}" if path.is_dir() else f"no such file: {path}")
    values = _read(file)
    auto = transformers_library()
    kind = values["model_type"]
    if kind not in auto.CONFIG_MAPPING:
        raise TargetError(
            f"{file}: model_type {kind[:80]!r} is not known to transformers{near(kind[:80], auto.CONFIG_MAPPING)}"
        )
    try:
        with limited(str(file)), quiet():
            config = auto.CONFIG_MAPPING[kind].from_dict(values)
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(f"{file}: {told(error)}") from error
    return from_config(config, path.resolve().name if path.is_dir() else str(path))


def _read(file: Path) -> dict[str, Any]:
    """The values of a config.json that names a type of model and asks for no code from elsewhere."""
    try:
        if file.stat().st_size > _LARGEST:
            raise TargetError(f"{file} has {file.stat().st_size:,} bytes, more than any configuration")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TargetError(f"{file} is not JSON: {first_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str) or not values["model_type"]:
        raise TargetError(f"{file} has no model_type, so it is no configuration of a transformers model")
    parts: list[Any] = [values]
    for part in parts:
        if isinstance(part, dict):
            hub = [key for key, value in part.items() if _is_code(key, value)]
            if hub:
                raise TargetError(
                    f"{file} asks to run code from a hub ({hub[0]}), which is never done; load the model yourself"
                )
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return values


def _is_code(key: str, value: Any) -> bool:
    """Whether an entry of a configuration asks for code from a hub: a module of the model's own, or a kernel."""
    return (
        key in ("auto_map", "custom_pipelines")
        or (key == "trust_remote_code" and bool(value))
        or (key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value))
    )


def model_type(name: str) -> ModelTarget | None:
    """The model of a type's default configuration; None where transformers has no such type."""
    try:
        auto = transformers_library()
    except TargetError:
        return None
    if name not in auto.CONFIG_MAPPING:
        return None
    try:
        config = auto.CONFIG_MAPPING[name]()
    except Exception as error:
        raise TargetError(f"{name}: no default configuration: {told(error)}") from error
    return from_config(config, name)


def transformers_library() -> Any:
    """The package, offline and quiet.

    Raises:
        TargetError: it is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError as error:
        raise TargetError("transformers is not installed; pip install lfpgraph[hf]") from error
    transformers.logging.set_verbosity(logging.CRITICAL)  # what it cannot take it also raises
    return transformers


def builders_of(config: Any, name: str) -> list[Callable[[Any], nn.Module]]:
    """How a configuration can become a model: by the classes it names, then by the heads that take it.

    Raises:
        TargetError: transformers has no model for it.
    """
    transformers = transformers_library()
    given = getattr(config, "architectures", None)
    names = [n for n in given if isinstance(n, str)] if isinstance(given, list | tuple) else []
    named: list[Any] = [getattr(transformers, n, None) for n in names]
    builders = [cls._from_config for cls in named if hasattr(cls, "_from_config")]
    for head in _HEADS:
        auto = getattr(transformers, head, None)
        if auto is not None and type(config) in auto._model_mapping:
            builders.append(lambda config, auto=auto: auto.from_config(config, trust_remote_code=False))
    if not builders:
        raise TargetError(f"{name}: transformers has no model for {type(config).__name__}")
    return builders


def from_config(config: Any, name: str) -> ModelTarget:
    """The model of a configuration."""
    builders = builders_of(config, name)

    def build() -> Built:
        errors = []
        for builder in builders:
            try:
                with quiet():
                    return _plain_experts(builder(config)), None, None
            except Exception as error:
                errors.append(told(error))
        raise TargetError(f"{name}: the model cannot be built: {errors[0]}")

    return weightless(name, build)


def _plain_experts(model: nn.Module) -> nn.Module:
    """Have experts use plain matrix products: the default kernel of transformers does not run on fake or meta tensors."""
    choose: Any = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("batched_mm")
    return model
