"""A graph network on a generated graph: GraphSAGE (Hamilton et al. 2017) tells to which community each node belongs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays
from .common.data import split
from .common.drawing import draw_curves
from .common.harness import Case, Report, Settings, Way
from .common.models import mlp, seeded
from .common.rates import tuned

__all__ = ["First", "Sage", "communities", "run"]

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
FEATURES, CLASSES, SAMPLED = 16, 6, 5


class Sage(nn.Module):
    """Two layers, each `relu(W x + V mean(neighbours))`, the second without relu.

    Takes a node, its sampled neighbours and theirs, [n, 1 + k + k * k, features]; returns the node's logits.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.own, self.around = nn.Linear(FEATURES, width), nn.Linear(FEATURES, width, bias=False)
        self.own_2, self.around_2 = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        node, near, far = x.split([1, SAMPLED, SAMPLED**2], 1)
        far = far.unflatten(1, (SAMPLED, SAMPLED)).mean(2)
        node = torch.relu(self.own(node) + self.around(near.mean(1, keepdim=True)))
        near = torch.relu(self.own(near) + self.around(far))
        return self.own_2(node[:, 0]) + self.around_2(near.mean(1))


class First(nn.Module):
    """The node alone, without its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def communities(nodes: int = 1500, inside: float = 6.0, outside: float = 4.0) -> tuple[Arrays, Arrays]:
    """Nodes in communities, with so many neighbours on average inside and outside of their own, and noisy features.

    Every node comes with neighbours drawn once, and theirs; half of the nodes are held out.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    same = y[:, None] == y
    chances = torch.where(same, inside * CLASSES, outside * CLASSES / (CLASSES - 1)) / nodes
    edges = torch.rand(nodes, nodes, generator=generator).triu(1) + torch.ones(nodes, nodes).tril() < chances
    weights = (edges | edges.T).float() + 1e-6 * torch.eye(nodes)  # a node without neighbours is its own
    near = weights.multinomial(SAMPLED, replacement=True, generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    features = 0.5 * centres[y] + torch.randn(nodes, FEATURES, generator=generator)
    rows = torch.cat([torch.arange(nodes)[:, None], near, near[near].flatten(1)], 1)
    return split(features[rows], y, held_out=0.5)


def run(settings: Settings) -> Report:
    """Accuracy on nodes that are held out; an MLP that sees nothing of neighbours shows what the graph is worth."""
    train, test = communities()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    cases, notes = list[Case](), list[str]()
    builds: dict[str, Callable[[], nn.Module]] = {
        "GraphSAGE": Sage,
        "MLP without the graph": lambda: nn.Sequential(First(), *mlp([FEATURES, 32, CLASSES])),
    }
    for name, build in builds.items():
        start = seeded(build)
        found, chosen = tuned(start(0), ways, RATES, train, test, settings, epochs=15, name=name, start=start)
        cases += found
        notes += chosen
    return Report("graphs", "accuracy", cases, draw_curves, (10, 4), notes)
