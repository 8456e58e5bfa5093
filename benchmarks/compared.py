"""Models and data for `lfpgraph compare`, of which docs/methods.md shows the tables.

lfpgraph compare benchmarks.compared:cnn benchmarks.compared:digits --ways lfp,backprop,local --steps 300 --seeds 3
lfpgraph compare benchmarks.compared:vit benchmarks.compared:digits --steps 300 --seeds 3
lfpgraph compare benchmarks.compared:gnn benchmarks.compared:graph --steps 200 --seeds 3
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lfpgraph.comparison.examples import IGNORED
from lfpgraph.demo.data import digits
from lfpgraph.models_zoo.digits import cnn, vit
from lfpgraph.models_zoo.other_kinds import GCN

__all__ = ["cnn", "digits", "gnn", "graph", "vit"]

NODES, CLASSES, FEATURES = 1000, 6, 16


def gnn() -> nn.Module:
    """The zoo's graph convolutional network, which is given a whole graph."""
    return GCN(FEATURES, 32, CLASSES)


def graph() -> tuple[Any, Any]:
    """Nodes in communities, with noisy features, and edges mostly within a community; half of the labels are held out."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (NODES,), generator=generator)
    same = labels[:, None] == labels
    chances = torch.where(same, 6.0 * CLASSES, 4.0 * CLASSES / (CLASSES - 1)) / NODES
    edges = (torch.rand(NODES, NODES, generator=generator) < chances / 2).nonzero().T
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    features = 0.5 * centres[labels] + torch.randn(NODES, FEATURES, generator=generator)
    whole = features, torch.cat([edges, edges.flip(0)], 1)
    train, test = labels.clone(), labels.clone()
    train[NODES // 2 :], test[: NODES // 2] = IGNORED, IGNORED
    return tuple(DataLoader([(whole, y)], batch_size=None) for y in (train, test))  # type: ignore[return-value,arg-type]
