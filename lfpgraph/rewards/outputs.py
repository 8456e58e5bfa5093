"""The part of a model's answer that a reward is given to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["outputs_of"]


def outputs_of(result: Any) -> Any:
    """The tensor that losses, rewards and metrics look at: `.logits`, the first entry of a tuple, or the result itself."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if logits is not None:
        return logits
    return result[0] if isinstance(result, list | tuple) and result else result
