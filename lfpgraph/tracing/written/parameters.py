"""The values of a model's parameters, put back after a run that was only to be looked at."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ParametersBefore"]

log = logging.getLogger("lfpgraph")
_LARGEST = 2 << 30  # bytes that are copied; a second copy of a large model's parameters may have no place


class ParametersBefore:
    """What parameters hold before a run. More than two gigabytes are not copied, but looked at.

    Args:
        model: whose parameters may be written to.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if _has_values(p)}
        size = sum(p.numel() * p.element_size() for p in self._parameters.values())
        self._before: dict[str, Any] | None = None
        if size <= _LARGEST:
            self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        else:
            self._marks = {name: _mark(p) for name, p in self._parameters.items()}

    def put_back(self) -> None:
        """Let all parameters hold what they held; where there is no copy, say in the log which do not."""
        if self._before is None:
            changed = [name for name, p in self._parameters.items() if _mark(p) != self._marks[name]]
            if changed:
                log.warning(
                    "%s is written to by the model's forward, which was run once more to see what it does; parameters of more "
                    'than %d GB are not put back. wrap(model, engine="live") runs forward once', changed[0], _LARGEST >> 30,
                )  # fmt: skip
            return
        for name, before in self._before.items():
            parameter = self._parameters[name]
            if parameter.shape == before.shape and not torch.equal(parameter.detach(), before):
                parameter.data.copy_(before)


def _has_values(parameter: Tensor) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return plain and not parameter.is_meta and not parameter.is_inference()


def _mark(parameter: Tensor) -> tuple[int, str]:
    """What is another one, most likely, once a parameter has been written to."""
    values = parameter.detach()
    if values.is_contiguous() and values.numel() * values.element_size() % 8 == 0 and values.data_ptr() % 8 == 0:
        with contextlib.suppress(RuntimeError):  # a part that begins within eight bytes
            bits = values.view(-1).view(torch.int64)  # the quickest to add up
            return parameter._version, str(bits.sum().item())
    try:
        dtype = torch.promote_types(parameter.dtype, torch.float64)
        return parameter._version, str(values.sum(dtype=dtype).item())  # of which NaN is the same
    except RuntimeError:  # numbers of eight bits, which cannot be added up
        return parameter._version, ""
