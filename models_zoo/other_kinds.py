"""Small families in plain torch: graph networks, neural fields, spiking networks, recurrent classifiers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["GAT", "GCN", "LIF", "ElmanCells", "NeRF", "RecurrentClassifier", "Siren", "SpikingCNN", "SpikingMLP"]


class GCN(nn.Module):
    """Graph convolutional network (Kipf and Welling 2017): features [n, f], edges [2, e] to [n, classes]."""

    def __init__(self, features: int = 1433, hidden: int = 16, classes: int = 7) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(features, hidden), nn.Linear(hidden, classes)])
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        degree = torch.ones_like(x[:, 0]).index_add(0, target, torch.ones_like(target, dtype=x.dtype))
        scale = degree.rsqrt()
        for i, layer in enumerate(self.layers):
            x = layer(self.dropout(x))
            messages = x[source] * (scale[source] * scale[target])[:, None]
            x = (x * (scale * scale)[:, None]).index_add(0, target, messages)
            x = torch.relu(x) if i == 0 else x
        return x


class _GATLayer(nn.Module):
    """Attention over neighbours, heads joined or averaged; `mask` [n, n] is true on edges."""

    def __init__(self, features: int, width: int, heads: int, join: bool) -> None:
        super().__init__()
        self.heads, self.join = heads, join
        self.linear = nn.Linear(features, heads * width, bias=False)
        self.source = nn.Parameter(torch.randn(heads, width) * 0.1)
        self.target = nn.Parameter(torch.randn(heads, width) * 0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.linear(x).unflatten(-1, (self.heads, -1))
        scores = (h * self.target).sum(-1)[:, None] + (h * self.source).sum(-1)[None]
        scores = nn.functional.leaky_relu(scores, 0.2).masked_fill(~mask[..., None], -1e9)
        out = torch.einsum("ijh,jhf->ihf", torch.softmax(scores, 1), h)
        return out.flatten(1) if self.join else out.mean(1)


class GAT(nn.Module):
    """Graph attention network (Velickovic et al. 2018): features [n, f], mask [n, n] to [n, classes]."""

    def __init__(self, features: int = 1433, width: int = 8, heads: int = 8, classes: int = 7) -> None:
        super().__init__()
        self.first = _GATLayer(features, width, heads, join=True)
        self.second = _GATLayer(heads * width, classes, 1, join=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.second(nn.functional.elu(self.first(x, mask)), mask)


class Siren(nn.Module):
    """Sine network (Sitzmann et al. 2020): coordinates [n, 2] to [n, 3]."""

    def __init__(self, width: int = 256, depth: int = 4, omega: float = 30.0) -> None:
        super().__init__()
        sizes = [2, *[width] * depth]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
        self.layers = nn.ModuleList(layers)
        self.head, self.omega = nn.Linear(width, 3), omega
        for i, layer in enumerate(layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


class NeRF(nn.Module):
    """Radiance field (Mildenhall et al. 2020): points [n, 3], directions [n, 3] to (colour [n, 3], density [n, 1])."""

    def __init__(self, width: int = 256, depth: int = 8, skip: int = 4) -> None:
        super().__init__()
        self.skip = skip
        points, directions = 3 + 6 * 10, 3 + 6 * 4
        ins = [points, *[width + (points if i == skip else 0) for i in range(depth - 1)]]
        self.layers = nn.ModuleList(nn.Linear(i, width) for i in ins)
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.colour = nn.Linear(width + directions, width // 2), nn.Linear(width // 2, 3)

    @staticmethod
    def _encode(x: Tensor, bands: int) -> Tensor:
        angles = [x * 2.0**i for i in range(bands)]
        return torch.cat([x, *(f(a) for a in angles for f in (torch.sin, torch.cos))], -1)

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self._encode(points, 10)
        x = encoded
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(torch.cat([encoded, x], -1) if i == self.skip + 1 else x))
        view = torch.relu(self.view(torch.cat([self.feature(x), self._encode(directions, 4)], -1)))
        return torch.sigmoid(self.colour(view)), torch.relu(self.density(x))


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons: the membrane decays, spikes above a threshold, and falls by it for a spike."""

    def __init__(self, beta: float = 0.9, threshold: float = 1.0) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        membrane = self.beta * membrane + current
        spike = (membrane > self.threshold).to(current.dtype)
        return spike, membrane - self.threshold * spike


class SpikingMLP(nn.Module):
    """Linear layers with LIF neurons, the same input at every step: [n, inputs] to spikes per step [n, classes]."""

    def __init__(self, inputs: int = 784, hidden: int = 1000, classes: int = 10, steps: int = 15) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, classes)])
        self.neuron, self.steps, self.widths = LIF(), steps, (hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        membranes = [x.new_zeros(x.shape[0], width) for width in self.widths]
        total = torch.zeros_like(membranes[-1])
        for _ in range(self.steps):
            spike = x
            for i, layer in enumerate(self.layers):
                spike, membranes[i] = self.neuron(layer(spike), membranes[i])
            total = total + spike
        return total / self.steps


class SpikingCNN(nn.Module):
    """Two convolutions and a linear layer with LIF neurons: images [n, 1, side, side] to spikes per step [n, classes]."""

    def __init__(self, side: int = 28, width: int = 32, classes: int = 10, steps: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.linear = nn.Linear(2 * width * (side // 4) ** 2, classes)
        self.neuron, self.steps = LIF(threshold=0.25), steps

    def forward(self, x: Tensor) -> Tensor:
        first = second = third = torch.zeros((), dtype=x.dtype, device=x.device)
        total: Tensor | None = None
        for _ in range(self.steps):
            spike, first = self.neuron(self.conv1(x), first)
            spike, second = self.neuron(self.conv2(spike), second)
            spike, third = self.neuron(self.linear(spike.flatten(1)), third)
            total = spike if total is None else total + spike
        assert total is not None
        return total / self.steps


class RecurrentClassifier(nn.Module):
    """Token ids [n, t] to [n, classes]: an embedding, a recurrent layer of torch, the mean of its states."""

    def __init__(self, kind: str, vocabulary: int, width: int, both: bool = False, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = getattr(nn, kind)(width, width, num_layers=2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(width * (2 if both else 1), classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0].mean(1))


class ElmanCells(nn.Module):
    """A recurrent network written as cells in a loop: [n, t, inputs] to [n, classes]."""

    def __init__(self, inputs: int = 8, width: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(inputs, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)
