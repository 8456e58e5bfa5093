"""Counter-current learning: a feedback network runs from the classes to the input, and blocks learn to meet it on the way."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import InputError
from .blocks import Flow
from .heads import Adapter
from .learning import LocalLosses, labelled, one_hot

__all__ = ["CounterCurrent"]


class CounterCurrent(LocalLosses):
    """Counter-current learning (Kao and Hariharan 2024) on blocks cut behind activations.

        g_K = one row for each class, one-hot;   g_k = relu(b_k(g_{k+1})), where g_{k+1} is a constant;
        L_k = mean over samples n and classes c of (cos(h_{k,n}, g_{k,c}) - [y_n = c])^2

    L_k moves block k and the feedback layer b_k alike. b_k mirrors block k + 1: a linear map from the shape that it hands on to
    the one that it takes, for images a product over channels. The last block learns by the loss.
    """

    early = False

    def reset(self) -> None:
        shapes, g = self.blocks.shapes(), self._classes()
        feedback: list[nn.Module] = []
        with torch.no_grad():
            for k in reversed(range(len(self.blocks) - 1)):
                feedback.append(Adapter(g, shapes[k]))
                g = feedback[-1](g)
        self.heads = nn.ModuleList(reversed(feedback))
        self._signals: list[Tensor] = []

    def _classes(self) -> Tensor:
        parameter = next(self.model.parameters())
        shape = self.blocks.shapes()[-1]
        if len(shape) != 1:
            raise InputError(f"counter-current learning needs one row of classes as output, not {shape}")
        return torch.eye(shape[0], dtype=parameter.dtype, device=parameter.device)

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        g, self._signals = self._classes(), []
        for layer in reversed(self.heads):
            g = torch.relu(cast(Adapter, layer)(g.detach()))
            self._signals.insert(0, g)
        super().gradients(inputs, labels)
        self._signals = []

    def local_loss(self, k: int, x: Tensor, labels: Tensor, flow: Flow) -> Tensor:
        h, labels = labelled(x, labels)
        if labels.is_floating_point():
            raise InputError("counter-current learning needs classes as labels")
        g = self._signals[k].flatten(1)
        alike = normalize(h) @ normalize(g).mT
        return (alike - one_hot(labels, len(g)).to(h)).square().mean()
