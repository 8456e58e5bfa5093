"""Rewards against lfprop's formulas, and `reward_loss` as the way in."""

from __future__ import annotations

import torch
from torch import nn

import lfpgraph
from lfpgraph.rewards import BinarySigmoid, CorrectClassification, Sigmoid, Softmax

from .helpers import relative


def test_formulas() -> None:
    torch.manual_seed(0)
    o = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.where(torch.arange(6) % 2 == 0, o.argmax(1), o.argmin(1))
    one_hot = torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(Softmax()(o, labels), o * (one_hot - o.softmax(1)))
    torch.testing.assert_close(Sigmoid()(o, labels), o * (one_hot - o.sigmoid()))
    binary = torch.randint(2, (6, 4))
    torch.testing.assert_close(BinarySigmoid()(o, binary), o * (binary - o.sigmoid()))
    expected = torch.zeros_like(o)
    for i, label in enumerate(labels):
        if o[i].argmax() == label:
            expected[i, label] = o[i, label].sign()
    assert expected.abs().sum() == 3
    torch.testing.assert_close(CorrectClassification()(o, labels), expected)


def test_softmax_reward_is_cross_entropy() -> None:
    """The softmax reward trains as cross-entropy does (summed over the batch)."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    outputs = model(x)
    lfpgraph.reward_loss(outputs, Softmax()(outputs, y)).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    for a, p in zip(found, model.parameters()):
        assert relative(a, p.grad) < 1e-9


def test_wrapped_and_eager_feedback_agree() -> None:
    """`feedback` and `.backward()` of `reward_loss` are one number with two signs; `feedback` changes nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    x, reward = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = lfpgraph.feedback(model, x, reward)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and found["input_0"].shape == x.shape
    lfpgraph.wrap(model)
    lfpgraph.reward_loss(model(x), reward).backward()
    for name, p in model.named_parameters():
        assert relative(-p.grad, found[name]) < 1e-9
