"""Feedback alignment and its kin, on an MLP and a CNN: ten steps against the papers' equations written out by hand."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear, one_hot
from torch.nn.grad import conv2d_input, conv2d_weight

import lfpgraph
from lfpgraph.composites.rivals import fixed_random
from lfpgraph.composites.rivals.ways_back import batch_key

RATE, CLASSES = 0.3, 4
WAYS = [
    "feedback-alignment", "feedback-alignment-refreshed", "usf", "brsf", "frsf", "direct-feedback-alignment", "drtp",
]  # fmt: skip


def _model(convolutions: bool) -> nn.Sequential:
    torch.manual_seed(0)
    if not convolutions:
        return nn.Sequential(nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, CLASSES)).double()
    first = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(20, CLASSES)).double()


def _matrix(way: str, w: Tensor, key: int, error: Tensor) -> Tensor:
    """B or V of a layer with the weights w."""
    bound = 1 / math.sqrt(w[0].numel())
    fixed = fixed_random(w.shape, key, w)
    drawn = fixed_random(w.shape, batch_key(key, [error]), w)
    return {
        "feedback-alignment": fixed,
        "feedback-alignment-refreshed": drawn,
        "usf": torch.sign(w) * bound / math.sqrt(3),
        "brsf": torch.sign(w) * drawn.abs(),
        "frsf": torch.sign(w) * fixed.abs(),
    }[way]


def _by_hand(model: nn.Sequential, x: Tensor, y: Tensor, way: str) -> None:
    """One step of gradient descent; layer l has z = W h + b and hands on tanh(z)."""
    layers = [(i, m) for i, m in enumerate(model) if isinstance(m, nn.Linear | nn.Conv2d)]
    inputs, h = [], x
    for _, layer in layers:
        h = h.flatten(1) if isinstance(layer, nn.Linear) else h
        inputs.append(h)
        z = (linear if isinstance(layer, nn.Linear) else conv2d)(h, layer.weight, layer.bias)
        h = torch.tanh(z)
    error = (z.softmax(1) - one_hot(y, CLASSES)) / len(y)
    moves, s = [], error
    for (i, layer), h in reversed(list(zip(layers, inputs))):
        w, key = layer.weight, zlib.crc32(f"{i}.weight".encode())
        s = s.reshape(len(y), *z_shape(layer, h))
        if isinstance(layer, nn.Linear):
            moves.append((layer, s.mT @ h, s.sum(0)))
        else:
            moves.append((layer, conv2d_weight(h, w.shape, s), s.sum((0, 2, 3))))
        if way in ("direct-feedback-alignment", "drtp"):
            given = error if way == "direct-feedback-alignment" else -one_hot(y, CLASSES).double() / len(y)
            s = (given @ fixed_random(torch.Size([CLASSES, h[0].numel()]), key, w)).reshape(h.shape)
        elif isinstance(layer, nn.Linear):
            s = s @ _matrix(way, w, key, error)
        else:
            s = conv2d_input(h.shape, _matrix(way, w, key, error), s)
        s = s * (1 - h**2)
    for layer, of_weight, of_bias in moves:
        layer.weight -= RATE * of_weight
        layer.bias -= RATE * of_bias


def z_shape(layer: nn.Linear | nn.Conv2d, h: Tensor) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (layer.out_features,)
    return (layer.out_channels, h.shape[2] - 2, h.shape[3] - 2)


@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("way", WAYS)
def test_ten_steps_are_the_papers(way: str, convolutions: bool) -> None:
    model, twin = lfpgraph.wrap(_model(convolutions), way), _model(convolutions)
    shape = (1, 6, 6) if convolutions else (36,)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    before = {name: p.clone() for name, p in twin.named_parameters()}
    for _ in range(10):
        x, y = torch.randn(8, *shape, dtype=torch.float64), torch.randint(CLASSES, (8,))
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            _by_hand(twin, x, y, way)
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        assert (p - before[name]).norm() > 0.01
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_refreshed_matrices_are_new_for_each_batch() -> None:
    first, second = torch.rand(8, 4), torch.rand(8, 4)
    assert batch_key(5, [first]) == batch_key(5, [first * (1 + 1e-7)]) != batch_key(5, [second])
    assert batch_key(5, [first]) != batch_key(6, [first])


def _matrix_of(model: nn.Sequential, given: Tensor) -> Tensor:
    """The matrix by which the second layer's signal, which is `given` [4, 3], came to the first, whose input is the identity."""
    model.zero_grad()
    (model(torch.eye(4, dtype=torch.float64)) * given).sum().backward()
    arrived = model[0].weight.grad
    assert arrived is not None
    return torch.linalg.lstsq(given, arrived.T).solution


@pytest.mark.parametrize("way", [*WAYS[:5], "gradient"])
def test_matrices_are_what_the_papers_say(way: str) -> None:
    """Read off from the outside: signs, sizes, whether they stay for another batch and for other weights."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double(), way)
    given = torch.randn(4, 3, dtype=torch.float64)
    w, found, other = model[1].weight.detach().clone(), _matrix_of(model, given), _matrix_of(model, 3 * given.flip(0))
    signs, fixed = torch.equal(found.sign(), w.sign()), torch.allclose(found, other)
    assert signs == (way in ("usf", "brsf", "frsf", "gradient")) and torch.allclose(found, w) == (way == "gradient")
    assert fixed == (way not in ("feedback-alignment-refreshed", "brsf"))
    assert (found.abs().max() - found.abs().min() < 1e-12) == (way == "usf")
    with torch.no_grad():
        model[1].weight.neg_()
    turned = _matrix_of(model, given)
    expected = {"feedback-alignment": found, "usf": -found, "frsf": -found, "gradient": -found}
    if way in expected:
        torch.testing.assert_close(turned, expected[way])
