"""Scores of weights and units by relevance or reward, and what is done by them: pruning, bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError

from .support.helpers import relative


def test_importance_and_pruning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[0].weight[3] = 0  # a unit that does nothing
        model[0].bias[3] = -1
    data = [(torch.randn(16, 4).double(), torch.randint(2, (16,))) for _ in range(3)]
    scores = lfpgraph.importance(model, data, by="unit")
    assert scores["0.weight"].shape == (8,) and scores["0.weight"].argmin() == 3 and scores["0.weight"][3] == 0
    weights = lfpgraph.importance(model, data)
    assert weights["2.weight"].shape == (2, 8)
    assert lfpgraph.prune(model, weights, 0.5) == 24
    assert int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) == 24
    gone = torch.cat([(model[i].weight == 0).flatten() for i in (0, 2)])
    flat = torch.cat([weights[f"{i}.weight"].flatten() for i in (0, 2)])
    assert flat[gone].max() <= flat[~gone].min()  # those of the least scores
    with pytest.raises(AttributionError, match="at least one batch"):
        lfpgraph.importance(model, [])
    with pytest.raises(AttributionError, match="between 0 and 1"):
        lfpgraph.prune(model, weights, 2.0)


def test_importance_of_a_reward_is_its_feedback() -> None:
    """Sizes summed over batches of one are the sizes of feedback, which is the weights' reward by size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    reward = lfpgraph.rewards.Softmax()
    rules = lfpgraph.get_composite("lfp-epsilon")
    scores = lfpgraph.importance(model, [(x[i : i + 1], y[i : i + 1]) for i in range(5)], rules, reward=reward)
    expected: dict[str, Tensor] = {}
    for i in range(5):
        found = lfpgraph.feedback(model, x[i : i + 1], lambda out, i=i: reward(out, y[i : i + 1]), rules)
        for name in scores:
            expected[name] = expected.get(name, 0) + found[name].abs()
    for name, score in scores.items():
        assert relative(score, expected[name]) < 1e-4  # an epsilon of 1e-6 enters at the output in another place
    with pytest.raises(lfpgraph.errors.RewardError, match="does not fit outputs"):
        lfpgraph.importance(model, [(x, y)], reward=lambda out, labels: out.sum(1))


def test_a_grid_by_least_squares() -> None:
    """Three values for rows of a few large entries: the least error of many reaches, and less than of reaching to the largest."""
    torch.manual_seed(0)
    model = nn.Linear(64, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 64) ** 3)
        model.weight[2] = 0.0
    w = model.weight.detach().clone()
    far = copy.deepcopy(model)
    lfpgraph.quantise(far, 2)
    assert lfpgraph.quantise(model, 2, fit="squares") == 2 * w.numel()
    near = model.weight.detach()
    errors = [(found - w).square().sum(1) for found in (near, far.weight.detach())]
    assert errors[0][0] < 0.8 * errors[1][0] and bool((errors[0] <= errors[1]).all())
    assert bool((near[2] == 0).all()) and [len(row.unique()) for row in near[:2]] == [3, 3]
    for reach in torch.linspace(0.05, 1, 39):  # no other reach does better by more than the steps between them
        step = reach * w[0].abs().max()
        other = ((w[0] / step).round().clamp(-1, 1) * step - w[0]).square().sum()
        assert errors[0][0] <= 1.02 * other


def test_bits_go_where_relevance_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    scores = {"0.weight": torch.ones(4, 16).double(), "2.weight": torch.ones(2, 4).double()}
    scores["0.weight"][1] = 100.0
    scores["0.weight"][2] = 0.0
    bits = lfpgraph.bits_by_importance(model, scores, 4.0)
    assert bits["0.weight"][1] == 8 and bits["0.weight"][2] == 2
    before = model[0].weight.detach().clone()
    assert lfpgraph.quantise(model, bits) <= 4 * (64 + 8)
    step = before.abs().amax(1, True) / (2.0 ** (bits["0.weight"][:, None] - 1) - 1)
    assert bool(((model[0].weight - before).abs() <= step / 2 + 1e-12).all())
    assert len(model[0].weight[2].unique()) <= 3  # two bits: minus, zero, plus
    assert lfpgraph.quantise(model, 8) == 8 * 72
    for wrong, message in ({"0.bias": 4}, "no parameter of two"), ({"0.weight": 1}, "at least 2"):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.quantise(model, wrong)
    with pytest.raises(AttributionError, match="choose one of largest, squares"):
        lfpgraph.quantise(model, 2, fit="square")
    with pytest.raises(AttributionError, match="below the least choice"):
        lfpgraph.bits_by_importance(model, scores, 1.5)
    with pytest.raises(AttributionError, match="a score of each entry"):
        lfpgraph.bits_by_importance(model, {"0.weight": torch.ones(4)}, 4)
