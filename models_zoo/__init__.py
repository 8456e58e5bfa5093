"""Architectures to test, report and benchmark on: `ZOO`, by name, at published and at tiny size."""

from __future__ import annotations

from typing import Any

from torch import nn

from .language import LANGUAGE
from .own import OWN
from .perception import PERCEPTION
from .registry import SIZES, Entry

__all__ = ["ZOO", "Entry", "build", "names"]

ZOO: dict[str, Entry] = {entry.name: entry for entry in (*OWN, *PERCEPTION, *LANGUAGE)}


def build(name: str, size: str = "published") -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A model of the zoo with example inputs, on the default device (inside `torch.device("meta")` without memory).

    Args:
        name: a key of `ZOO`.
        size: "published", or "tiny" for the same structure in small.

    Raises:
        KeyError: no such name. ValueError: no such size.
    """
    from ..inputs.examples import example_inputs

    if name not in ZOO:
        raise KeyError(f"{name!r} is not in the zoo; names() lists what is")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    entry = ZOO[name]
    model = entry.build(size)
    args, kwargs = entry.inputs(model, size) if entry.inputs is not None else example_inputs(model)
    return model, args, kwargs


def names(family: str | None = None) -> list[str]:
    """The names of the zoo, or of one family, in order of the zoo."""
    return [entry.name for entry in ZOO.values() if family in (None, entry.family)]
