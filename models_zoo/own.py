"""Entries in plain torch, defined in this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import cnn, diffusion, forecasting, hybrids, other_kinds, torch_models
from .registry import Entry, images, tensors

__all__ = ["OWN"]


def _by_size(published: Any, tiny: Any) -> Any:
    """A build function from one per size."""
    return lambda size: published() if size == "published" else tiny()


def _graph(make: Any, size: str) -> tuple[Tensor, Tensor]:
    n, edges, features = (2708, 10556, 1433) if size == "published" else (12, 30, 20)
    return make.floats(n, features), make.integers(0, n, 2, edges)


def _masked_graph(make: Any, size: str) -> tuple[Tensor, Tensor]:
    n, features = (2708, 1433) if size == "published" else (12, 20)
    return make.floats(n, features), make.integers(0, 2, n, n) > 0


def _dit(make: Any, size: str) -> tuple[Tensor, Tensor, Tensor]:
    side = 32 if size == "published" else 8
    return make.floats(2, 4, side, side), 1000 * make.uniform(2), make.integers(0, 10, 2)


def _ddpm(make: Any, size: str) -> tuple[Tensor, Tensor]:
    side = 32 if size == "published" else 8
    return make.floats(2, 3, side, side), 1000 * make.uniform(2)


def _batch(published: tuple[int, ...], tiny: tuple[int, ...], scale: float = 1.0) -> Any:
    """Random inputs [2, ...] of these shapes."""
    return tensors(lambda make, size: (scale * make.floats(2, *(published if size == "published" else tiny)),))


def _series(make: Any, size: str) -> tuple[Tensor]:
    values = 0.5 + make.uniform(2, 24 if size == "published" else 6)
    return (torch.cat([make.integers(0, 4, 2, 1).to(values), values], 1),)


def _captioned(make: Any, size: str) -> tuple[Tensor]:
    pixels, words = (32 * 32, 16) if size == "published" else (8 * 8, 4)
    pictures = make.floats(2, pixels)
    return (torch.cat([pictures, make.integers(0, 10, 2, words).to(pictures)], 1),)


_sequences = tensors(lambda make, size: (make.integers(0, 3, 2),))
_places = tensors(lambda make, size: (make.uniform(64, 3) * 2 - 1,))
_same = tensors(lambda make, size: (make.floats(2, 1, 28, 28),))
_points = tensors(lambda make, size: (make.uniform(64, 2) * 2 - 1,))
_rays = tensors(lambda make, size: (make.uniform(64, 3), make.uniform(64, 3)))
_ids = tensors(lambda make, size: (make.integers(0, 100, 2, 32 if size == "published" else 6),))


def _rnn(kind: str, both: bool = False) -> Any:
    return _by_size(
        lambda: other_kinds.RecurrentClassifier(kind, 10_000, 256, both),
        lambda: other_kinds.RecurrentClassifier(kind, 100, 8, both),
    )


OWN = [
    Entry("mlp", "MLP", _by_size(lambda: torch_models.mlp(784, 512, 10), torch_models.mlp), _batch((784,), (20,))),
    Entry(
        "mlp-toy",
        "MLP",
        lambda size: nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)),
        _batch((2,), (2,)),
    ),
    Entry(
        "mlp-mixer-b16",
        "MLP",
        _by_size(cnn.Mixer, lambda: cnn.Mixer(32, 8, 16, 2, 5)),
        _batch((3, 224, 224), (3, 32, 32)),
    ),
    Entry("lenet-5", "CNN", lambda size: torch_models.lenet(), _same),
    Entry("vgg-small", "CNN", lambda size: torch_models.vgg(), _batch((3, 16, 16), (3, 16, 16))),
    Entry("vgg16", "CNN", _by_size(cnn.vgg16, lambda: cnn.vgg16(16, 5)), images(224, 32)),
    Entry("resnet-18", "CNN", _by_size(torch_models.ResNet18, lambda: torch_models.ResNet18(5, 8)), images(224, 32)),
    Entry("efficientnetv2-m", "CNN", cnn.efficientnet_v2_m, images(480, 64)),
    Entry("step-cnn", "CNN", lambda size: torch_models.step_cnn(), _batch((1, 8, 8), (1, 8, 8))),
    Entry("unet", "segmentation", _by_size(cnn.UNet, lambda: cnn.UNet(4, 3)), images(256, 16)),
    Entry("autoencoder", "autoencoder", lambda size: cnn.autoencoder(32 if size == "published" else 4), images(32, 32)),
    Entry("vae", "autoencoder", _by_size(cnn.VAE, lambda: cnn.VAE(20, 16, 4)), _batch((784,), (20,))),
    Entry("lstm-classifier", "recurrent", _rnn("LSTM"), _ids),
    Entry("gru-classifier", "recurrent", _rnn("GRU"), _ids),
    Entry("bilstm-classifier", "recurrent", _rnn("LSTM", both=True), _ids),
    Entry(
        "elman-cells",
        "recurrent",
        _by_size(other_kinds.ElmanCells, lambda: other_kinds.ElmanCells(8, 8)),
        _batch((32, 8), (5, 8)),
    ),
    Entry("gcn", "graph", _by_size(other_kinds.GCN, lambda: other_kinds.GCN(20, 8, 3)), tensors(_graph)),
    Entry("gat", "graph", _by_size(other_kinds.GAT, lambda: other_kinds.GAT(20, 4, 2, 3)), tensors(_masked_graph)),
    Entry("siren", "neural field", _by_size(other_kinds.Siren, lambda: other_kinds.Siren(16, 3)), _points),
    Entry("nerf", "neural field", _by_size(other_kinds.NeRF, lambda: other_kinds.NeRF(16, 6)), _rays),
    Entry("triplane", "neural field", _by_size(hybrids.TriPlane, lambda: hybrids.TriPlane(4, 8, 16, 2)), _places),
    Entry(
        "es-rnn",
        "recurrent",
        _by_size(forecasting.ESRNN, lambda: forecasting.ESRNN(4, 3, 4, 8)),
        tensors(_series),
    ),
    Entry("pv-rnn", "recurrent", _by_size(forecasting.PVRNN, lambda: forecasting.PVRNN(3, 5, 8, 2, 2)), _sequences),
    Entry(
        "captioner",
        "vision-language",
        _by_size(forecasting.Captioner, lambda: forecasting.Captioner(8, 4, 12, 16, 4)),
        tensors(_captioned),
    ),
    Entry(
        "bossnas-hybrid",
        "hybrid CNN-transformer",
        _by_size(hybrids.SearchedHybrid, lambda: hybrids.SearchedHybrid(3, 8, 2, 2, 5, stride=1)),
        images(224, 16),
    ),
    Entry(
        "lif-mlp",
        "spiking",
        _by_size(other_kinds.SpikingMLP, lambda: other_kinds.SpikingMLP(64, 32, 10, 5)),
        _batch((784,), (64,), 3.0),
    ),
    Entry(
        "lif-cnn",
        "spiking",
        _by_size(other_kinds.SpikingCNN, lambda: other_kinds.SpikingCNN(8, 4, 5, 4)),
        _batch((1, 28, 28), (1, 8, 8), 3.0),
    ),
    Entry("dit-xl-2", "diffusion", _by_size(diffusion.DiT, lambda: diffusion.DiT(8, 2, 32, 2, 4)), tensors(_dit)),
    Entry(
        "ddpm-unet",
        "diffusion",
        _by_size(diffusion.DDPM, lambda: diffusion.DDPM(8, 16, (1, 2), 1, 4)),
        tensors(_ddpm),
    ),
    Entry(
        "transformer-torch",
        "text encoder",
        _by_size(
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, batch_first=True), 6),
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
        ),
        _batch((16, 512), (6, 16)),
    ),
]
