"""Quantus: our relevance as an `explain_func`, for all of its metrics. Quantus itself is not imported here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..composites.composite import Composite
from ..explain.attribution import attribute

__all__ = ["explain"]


def explain(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    composite: str | Composite | None = None,
    device: Any = None,
    **options: Any,
) -> np.ndarray:
    """Relevance of a batch, of the inputs' shape.

    Args:
        model: as it is, in the mode it is in.
        inputs: an array [n, ...]. targets: a class for each sample [n].
        composite, options: for `lfpgraph.attribute`; in Quantus `explain_func_kwargs`.
        device: where the model is; Quantus adds it.
    """
    parameter = next(model.parameters())
    x = torch.as_tensor(np.asarray(inputs), dtype=parameter.dtype, device=device or parameter.device)
    classes = torch.as_tensor(np.asarray(targets)).long().reshape(-1)
    found = attribute(model, x, classes.expand(len(x)), composite, **options)
    return np.asarray(found.detach().cpu().numpy())
