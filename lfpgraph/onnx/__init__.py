"""ONNX both ways: models in, trained models and whole feedback-training steps out, run where there is no autograd.

`OrtTrainer` needs numpy and onnxruntime alone; the other names need torch and onnx, and are imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .runtime.trainer import OrtTrainer, StepResult

if TYPE_CHECKING:
    from .imports.importer import load
    from .step.attribution import export_attribution
    from .step.exporter import export_forward, export_training_step
    from .step.trained import export

__all__ = ["OrtTrainer", "StepResult", "export", "export_attribution", "export_forward", "export_training_step", "load"]

_PLACES = {
    "export": "step.trained", "export_attribution": "step.attribution", "export_forward": "step.exporter",
    "export_training_step": "step.exporter", "load": "imports.importer",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from ..errors import OnnxError

    try:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith(("lfpgraph.", "transformers")):
            raise
        raise OnnxError(f"lfpgraph.onnx.{name} needs {error.name}: pip install lfpgraph[onnx]") from error
