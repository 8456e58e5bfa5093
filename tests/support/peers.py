"""Other tools' modules, imported without torchvision, which they name but which these tests do not need."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

__all__ = ["peer"]


def peer(name: str) -> Any:
    """A module of zennit, LXT or captum; the test is skipped where that is not installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    if name.startswith("lxt.efficient") and "lxt.efficient" not in sys.modules:
        # The package itself imports every model it knows; its rules and patches need none of them.
        package = types.ModuleType("lxt.efficient")
        package.__path__ = [str(Path(importlib.import_module("lxt").__path__[0]) / "efficient")]
        sys.modules["lxt.efficient"] = package
    with _stand_in(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """An empty torchvision with the classes that are named at import, where there is no real one."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    root, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    places: dict[str, Any] = {"torchvision": root, "torchvision.models": models}
    for part, names in {"resnet": ("Bottleneck", "BasicBlock"), "vgg": (), "vision_transformer": ()}.items():
        module: Any = types.ModuleType(f"torchvision.models.{part}")
        for cls in names:
            setattr(module, cls, type(cls, (nn.Module,), {}))
        module.nn = nn
        setattr(models, part, module)
        places[module.__name__] = module
    ops: Any = types.ModuleType("torchvision.ops")
    ops.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    places[ops.__name__] = root.ops = ops  # type: ignore[attr-defined]
    root.models = models  # type: ignore[attr-defined]
    sys.modules.update(places)
    try:
        yield
    finally:
        for key in places:
            sys.modules.pop(key, None)
