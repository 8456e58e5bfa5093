"""What an entry of the zoo is, and how one is made from a transformers configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .small_configs import shrink

__all__ = ["Entry", "Inputs", "images", "tensors", "transformers_entry"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
SIZES = ("published", "tiny")


@dataclass(frozen=True)
class Entry:
    """An architecture. `build(size)` makes it on the default device; without `inputs` they follow from the model."""

    name: str
    family: str
    build: Callable[[str], nn.Module]
    inputs: Callable[[nn.Module, str], Inputs] | None = None


def transformers_entry(
    name: str,
    family: str,
    model: str,
    tiny: dict[str, Any] | None = None,
    inputs: Callable[[nn.Module, str], Inputs] | None = None,
    **config: Any,
) -> Entry:
    """An entry for a class of transformers, given the fields in which its published configuration differs from the default.

    Args:
        model: the name of the class.
        tiny: fields of the small configuration that `shrink` cannot work out.
        config: fields of the published configuration; a dict for a part.
    """

    def build(size: str) -> nn.Module:
        import transformers

        cls = getattr(transformers, model)
        published = cls.config_class(**config)
        chosen = published if size == "published" else shrink(published, config, tiny or {})
        built = cls._from_config(chosen)
        if hasattr(built, "set_experts_implementation"):
            # The default calls a custom operation that exists for meta tensors in bfloat16 alone.
            built.set_experts_implementation("batched_mm")
        return built.to("meta") if torch.get_default_device().type == "meta" else built

    return Entry(name, family, build, inputs)


def images(published: int = 224, tiny: int = 64, channels: int = 3) -> Callable[[nn.Module, str], Inputs]:
    """Inputs for a network that takes images of any size."""

    def make(model: nn.Module, size: str) -> Inputs:
        from ..inputs.maker import TensorMaker

        side = published if size == "published" else tiny
        image = TensorMaker(model).floats(2, channels, side, side)
        return ((), {"pixel_values": image}) if hasattr(model, "config") else ((image,), {})

    return make


def tensors(make: Callable[[Any, str], tuple[Tensor, ...]]) -> Callable[[nn.Module, str], Inputs]:
    """Positional inputs, from a function of a TensorMaker and the size."""

    def inputs(model: nn.Module, size: str) -> Inputs:
        from ..inputs.maker import TensorMaker

        return make(TensorMaker(model), size), {}

    return inputs
