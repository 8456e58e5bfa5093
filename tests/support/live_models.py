"""Small models of many kinds, each with the loss of one step: what people build by hand and what other libraries hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import live_dynamics, live_nets  # noqa: F401  (they register their models)
from .live_cases import MODELS, Case, case, data

__all__ = ["MODELS"]


class _Frozen(nn.Module):
    """A head on features of an encoder that runs under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = F.relu(self.encoder(x))
        return self.head(h)


@case
def _frozen() -> Case:
    return _Frozen(), lambda m: F.cross_entropy(m(data(5, 6)), torch.randint(3, (5,)))


class _Codes(nn.Module):
    """A vector-quantized autoencoder: the nearest code, straight through, with a commitment loss kept on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.codes = nn.Linear(6, 4), nn.Linear(4, 6), nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        code = self.codes(torch.cdist(h, self.codes.weight).argmin(-1))
        self.commitment = F.mse_loss(h, code.detach()) + F.mse_loss(code, h.detach())
        return self.decoder(h + (code - h).detach())


@case
def _codes() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = data(5, 6)
        return F.mse_loss(m(x), x) + m.commitment

    return _Codes(), loss
