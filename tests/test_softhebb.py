"""SoftHebb against its equations written out, on models of several kinds, and what it learns."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo import build
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.composites.competition import softhebb
from lfpgraph.errors import CompositeError

from .support.small_nets import batch, net


def by_hand(layer: Any, x: Tensor, anti: bool, power: float) -> Tensor:
    """dW of one layer, row by row."""
    w = layer.weight.detach().flatten(1)
    rows = x if x.dim() == 2 else F.unfold(x, 2, padding=1, stride=2).movedim(1, -1).reshape(-1, w.shape[1])
    found = torch.zeros_like(w)
    for row in rows:
        u = w @ row
        y = torch.softmax((u + layer.bias.detach()) / 0.5, 0)
        for k in range(len(w)):
            sign = 1 if not anti or u[k] + layer.bias[k] == (u + layer.bias).max() else -1
            found[k] += sign * y[k] * (row - u[k] * w[k])
    return (found / len(rows) * (w.norm(dim=1, keepdim=True) - 1).abs() ** power).reshape(layer.weight.shape)


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize("anti", [False, True])
@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
def test_ten_steps_are_the_papers(convolutions: bool, anti: bool, engine: str) -> None:
    model, twin = net(convolutions), net(convolutions)
    power = 0.5 if anti else 0.0
    lfpgraph.wrap(model, softhebb("own", temperature=0.5, anti=anti, power=power), engine=engine)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for step in range(10):
        x, y = batch(step, convolutions)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        twin.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        with torch.no_grad():
            first, last = twin[0], twin[-1]
            first.weight += 0.3 * by_hand(first, x, anti, power)
            for p in last.parameters():
                p -= 0.3 * p.grad
    before = net(convolutions)
    for (name, p), q, b in zip(model.named_parameters(), twin.parameters(), before.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
        assert torch.equal(p, b) == (name == "0.bias")


@pytest.mark.parametrize(
    ("kind", "engines"),
    [
        ("lstm-classifier", ["live"]),
        ("gcn", ["live", "static"]),
        *(
            pytest.param(kind, ["live", "static"], marks=pytest.mark.slow)
            for kind in ("vit-b16", "lstm-classifier", "gpt2")
        ),
    ],
)
def test_other_models_run_as_they_are(kind: str, engines: list[str]) -> None:
    """Heads take the gradient, hidden layers their own change, in both engines."""
    torch.manual_seed(0)
    model, args, kwargs = build(kind, "tiny")
    model.eval()
    out = lambda m: getattr(r := m(*args, **kwargs), "logits", r)  # noqa: E731
    out(model).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found = []
    for engine in engines:
        model.zero_grad()
        lfpgraph.wrap(model, "softhebb", engine=engine)
        out(model).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        lfpgraph.unwrap(model)
    for name, g in found[0].items():
        torch.testing.assert_close(g, found[-1][name], rtol=1e-3, atol=1e-5)
    moved = {name for name, g in found[0].items() if g.any()}
    heads = {name for name in moved if torch.allclose(found[0][name], plain[name], rtol=1e-4, atol=1e-7)}
    assert heads and len(moved - heads) >= (1 if kind == "gcn" else 2)


def test_hidden_layers_learn_what_comes_in() -> None:
    """Three directions with noise: for each there is a neuron along it in the end, without any label."""
    torch.manual_seed(0)
    centres = torch.eye(8)[:3]
    model: Any = nn.Sequential(nn.Linear(8, 12, bias=False), nn.ReLU(), nn.Linear(12, 2))
    lfpgraph.wrap(model, softhebb("winners", temperature=0.2, power=0.0))
    optimizer = torch.optim.SGD(model[0].parameters(), 0.5)
    for _ in range(150):
        x = centres[torch.randint(3, (64,))] + 0.1 * torch.randn(64, 8)
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    alike = F.normalize(model[0].weight.detach()) @ centres.T
    assert alike.max(0).values.min() > 0.95


def test_is_pickled() -> None:
    own = softhebb("own", temperature=0.5)
    assert pickle.loads(pickle.dumps(own)).structure == own.structure != lfpgraph.get_composite("softhebb").structure


def test_bad_settings() -> None:
    with pytest.raises(CompositeError, match="temperature above 0"):
        softhebb(temperature=0.0)
