"""Rewards against lfprop's formulas, and `reward_loss` as the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfpgraph.models_zoo.torch_models import Step
from torch import nn

import lfpgraph
from lfpgraph import rewards
from lfpgraph.errors import RewardError
from lfpgraph.rewards import BinarySigmoid, CorrectClassification, Sigmoid, Softmax
from lfpgraph.training.objective import Objective

from .support.helpers import relative


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
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3)
    ).double()
    x, reward = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = lfpgraph.feedback(model, x, reward)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and found["input_0"].shape == x.shape
    lfpgraph.wrap(model)
    lfpgraph.reward_loss(model(x), reward).backward()
    for name, p in model.named_parameters():
        assert relative(-p.grad, found[name]) < 1e-9


GOLDEN = Path(__file__).parent / "golden" / "lfprop_rewards.npz"
OURS: dict[str, Any] = {
    "binary_sigmoid": rewards.BinarySigmoid(),
    "bounded_softmax": rewards.BoundedSoftmax(0.1, 0.7),
    "bounded_softmax_sign": rewards.BoundedSoftmax(0.1, 0.7, sign_only=True),
    "correct": rewards.CorrectClassification(),
    "maximize": rewards.MaximizeNeuron(),
    "minimize": rewards.MinimizeNeuron(),
    "misclassification": rewards.Misclassification(),
    "sigmoid": rewards.Sigmoid(),
    "softmax": rewards.Softmax(),
    "spikes": rewards.RateCodedSpikes(),
}


@pytest.mark.parametrize("name", OURS)
def test_equals_lfprop(name: str) -> None:
    """The published lfprop 1.0.0's own functions (golden file by make_rewards_golden.py), a tie and a zero included."""
    with np.load(GOLDEN) as file:
        outputs, labels, reward = (torch.from_numpy(file[f"{name}/{part}"]) for part in ("outputs", "labels", "reward"))
    found = OURS[name](outputs, labels)
    assert reward.abs().sum() > 0 and found.shape == outputs.shape and not found.requires_grad
    torch.testing.assert_close(found, reward, rtol=1e-12, atol=0)


def test_one_neuron() -> None:
    o = torch.tensor([[1.0, -2.0, 3.0]])
    found = rewards.MaximizeNeuron(1)(o)
    assert found[0, 0] == found[0, 2] == 0 and found[0, 1] == rewards.MaximizeNeuron()(o)[0, 1] < 0
    with pytest.raises(RewardError, match="no output 3"):
        rewards.MaximizeNeuron(3)(o)


@pytest.mark.parametrize(
    "reward, loss",
    [
        (rewards.SquaredError(), lambda o, t: 0.5 * (o - t).square().sum()),
        (rewards.SquaredError(delta=0.5), lambda o, t: nn.functional.huber_loss(o, t, reduction="sum", delta=0.5)),
        (rewards.AbsoluteError(), lambda o, t: (o - t).abs().sum()),
    ],
)
def test_regression_rewards_are_losses(reward: Any, loss: Any) -> None:
    torch.manual_seed(1)
    o, t = torch.randn(8, 1, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64)
    loss(o, t.unsqueeze(1)).backward()
    torch.testing.assert_close(reward(o, t), -(o * o.grad).detach())


def test_preferences() -> None:
    """Bradley and Terry's loss in reward form, for classes of a row and for scored items, a pair given twice too."""
    o = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor([[0, 1], [3, 2], [1, 3]])
    difference = o.gather(1, pairs[:, :1]) - o.gather(1, pairs[:, 1:])
    (-nn.functional.logsigmoid(2 * difference)).sum().backward()
    torch.testing.assert_close(rewards.PairwisePreference(beta=2)(o, pairs), -(o * o.grad).detach())

    scores = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor([[0, 1], [4, 2], [0, 1]])
    (-nn.functional.logsigmoid(scores[pairs[:, 0]] - scores[pairs[:, 1]])).sum().backward()
    torch.testing.assert_close(rewards.PairwisePreference()(scores, pairs), -(scores * scores.grad).detach())


def test_scalar_reward() -> None:
    """REINFORCE in reward form; the running mean makes a constant reward say nothing."""
    o = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    actions, given = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, dtype=torch.float64)
    (-(given * o.log_softmax(1)[torch.arange(6), actions])).sum().backward()
    torch.testing.assert_close(rewards.ScalarReward("none")(o, given, actions), -(o * o.grad).detach())
    function = rewards.ScalarReward()
    assert all(not function(o, torch.ones(6), actions).any() for _ in range(2))
    assert function(o, torch.full((6,), 2.0), actions).any()
    drawn = rewards.ScalarReward.sample(
        torch.tensor([[0.0, 0.0]]).repeat(4000, 1), generator=torch.Generator().manual_seed(0)
    )
    assert 1850 < int(drawn.sum()) < 2150
    sure = torch.tensor([[30.0, 0.0]]).repeat(4000, 1)
    drawn = rewards.ScalarReward.sample(sure, 0.5, torch.Generator().manual_seed(0))
    assert 900 < int(drawn.sum()) < 1100 and not rewards.ScalarReward.sample(sure).any()


def test_labels_are_tensors_arrays_or_lists() -> None:
    o, classes = torch.randn(3, 4), [0, 3, 1]
    ones = np.eye(4)[classes].tolist()
    for reward, labels in (
        (rewards.Softmax(), classes), (rewards.Misclassification(), classes), (rewards.Contrast(), [0, 0, 1]),
        (rewards.Energy(), [1, 0, 1]), (rewards.BinarySigmoid(), ones), (rewards.SquaredError(), ones),
        (rewards.Correlation(), ones), (rewards.PairwisePreference(), [[0, 2]] * 3),
    ):  # fmt: skip
        expected = reward(o, torch.tensor(labels))
        assert torch.equal(reward(o, labels), expected) and torch.equal(reward(o, np.array(labels)), expected)


def test_callback() -> None:
    o = torch.randn(4, 2, requires_grad=True)
    assert torch.equal(rewards.Callback(lambda o, y: [1, 2])(o), torch.tensor([[1.0, 2.0]]).expand(4, 2))
    assert torch.equal(
        rewards.Callback(lambda o: o.sum(1, keepdim=True))(o), o.detach().sum(1, keepdim=True).expand(4, 2)
    )
    assert torch.equal(rewards.Callback(lambda o, by, on=0: by * o + on)(o, 2, on=1), 2 * o.detach() + 1)
    assert torch.equal(rewards.Callback(lambda o, y: np.ones((4, 1)) * y)(o, 3), torch.full((4, 2), 3.0))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda o: rewards.Softmax()(o, torch.tensor([0, 1, 5])), "between 0 and 3; got 0 to 5"),
        (lambda o: rewards.Softmax()(o, torch.tensor([0, -1, 1])), "got -1 to 1"),
        (lambda o: rewards.Softmax()(o, torch.zeros(2)), r"shape \[2\]"),
        (lambda o: rewards.Softmax()(o, torch.tensor([0.5, 1, 1])), "whole numbers"),
        (lambda o: rewards.SquaredError()(o, torch.zeros(3)), "targets of shape"),
        (lambda o: rewards.SquaredError()(o, torch.zeros(4, 3)), "targets of shape"),
        (lambda o: rewards.Softmax()(o, "cat"), "labels must be a tensor, an array or a list of numbers, not 'cat'"),
        (lambda o: rewards.SquaredError()(o, None), "targets must be a tensor"),
        (lambda o: lfpgraph.reward_loss(o.requires_grad_(), None), "reward must be a tensor"),
        (lambda o: lfpgraph.reward_loss(o.requires_grad_(), o.detach() * 1j), "reward must be real numbers"),
        (lambda o: lfpgraph.reward_loss(o.requires_grad_(), o.detach(), silent=0), "silent must be a positive number"),
        (lambda o: rewards.SquaredError(delta="a"), "delta must be a positive number"),
        (lambda o: rewards.PairwisePreference(beta=-1), "beta must be a positive number"),
        (lambda o: rewards.Callback(3), "takes a function"),
        (lambda o: rewards.MaximizeNeuron(1.5), "must be the number of an output"),
        (lambda o: rewards.ScalarReward.sample(o, explore=2), "a share, 0 to 1"),
        (lambda o: rewards.ScalarReward.sample(o[0]), r"outputs \[n, c\]"),
        (lambda o: rewards.group_advantages([1, 2, 3, 4], 2.0), "a whole number of answers"),
        (lambda o: rewards.SquaredError(delta=0)(o, o), "delta"),
        (lambda o: rewards.BoundedSoftmax(0.9, 0.1), "0 <= lower <= upper <= 1"),
        (lambda o: rewards.RateCodedSpikes()(o, torch.zeros(3)), r"spikes \[t, n, c\]"),
        (lambda o: rewards.RateCodedSpikes()(o.expand(2, 3, 4), torch.tensor([0, 1, 4])), "between 0 and 3"),
        (lambda o: rewards.ScalarReward()(o, torch.zeros(4)), "give one for each"),
        (lambda o: rewards.ScalarReward("median"), "baseline="),
        (lambda o: rewards.ScalarReward()(o, torch.zeros(3), torch.tensor([0, 0, 9])), "actions must be"),
        (lambda o: rewards.PairwisePreference()(o, torch.tensor([0, 1])), r"\[m, 2\]"),
        (lambda o: rewards.PairwisePreference()(o, torch.tensor([[0, 4]] * 3)), "pairs must be"),
        (lambda o: rewards.Callback(lambda o, y: torch.zeros(3))(o), "does not fit"),
        (lambda o: rewards.Callback(lambda o, y: "good")(o), "does not fit"),
        (lambda o: rewards.Callback(lambda o, y: float("nan"))(o), "NaN"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        call(torch.randn(3, 4))


@pytest.mark.parametrize(("composite", "size"), [("lfp", 1.0), ("lfp-snn", 1e-6)])
def test_silent_outputs_in_the_trainer(composite: str, size: float) -> None:
    """Spikes that did not happen are told by their composite, and outweigh nothing under the others."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 3), Step()), composite)
    objective = Objective(reward=lambda outputs, labels: torch.ones_like(outputs))
    batch = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    loss, outputs, _ = objective(model, batch)
    seen: list[torch.Tensor] = []
    outputs.register_hook(seen.append)
    loss.backward()
    silent = outputs == 0
    assert silent.any() and not silent.all()
    assert relative(seen[0][silent], torch.full_like(seen[0][silent], -1 / 6 / size)) < 1e-6
    assert relative(seen[0][~silent], torch.full_like(seen[0][~silent], -1 / 6)) < 1e-6


def test_silent_outputs_are_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfpgraph.rewards.loss._told", [])
    outputs = torch.tensor([0.0, 1.0], requires_grad=True)
    lfpgraph.reward_loss(outputs, torch.tensor([0.0, 1.0]))
    lfpgraph.reward_loss(outputs, torch.ones(2), silent=1.0).backward()
    assert not caplog.records and outputs.grad is not None and outputs.grad.tolist() == [-1.0, -1.0]
    for _ in range(2):
        lfpgraph.reward_loss(outputs, torch.ones(2))
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "silent=1.0" in caplog.text
