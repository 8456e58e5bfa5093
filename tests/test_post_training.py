"""Rewards of post-training against the papers' objectives under autograd; advantages, hybrids; energy, correlation, contrast."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph import rewards
from lfpgraph.errors import RewardError
from lfpgraph.rewards import PolicyGradient

from .support.by_hand import batches, both, descend, small_model
from .support.objectives import PAPERS, contrast_loss, correlation_loss, energy_loss


def drawn() -> dict[str, Tensor]:
    """Log-probabilities of six answers of up to seven tokens, of three policies; NaN behind an answer's end."""
    generator = torch.Generator().manual_seed(0)
    p, apart, other = torch.randn(3, 6, 7, generator=generator, dtype=torch.float64)
    p = -p.abs()
    mask = torch.arange(7) < torch.tensor([[7], [3], [5], [1], [6], [4]])
    found = {"p": p, "old": p - 0.4 * apart, "reference": p - 0.5 * other}
    found = {name: x.masked_fill(~mask, math.nan) for name, x in found.items()}
    return {**found, "mask": mask, "advantages": torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.25], dtype=torch.float64)}


@pytest.mark.parametrize("name", PAPERS)
def test_is_the_papers_objective(name: str) -> None:
    """Value and gradient of the objective, padding of NaN or not; and the reward, given back to log-probabilities."""
    policy, paper = PAPERS[name]
    given = drawn()
    mask, a = given["mask"], given["advantages"].unsqueeze(1)
    p, o, q = (given[key].nan_to_num(-1.0).requires_grad_(key == "p") for key in ("p", "old", "reference"))
    expected = paper(p, o, q, a, mask)
    (gradient,) = torch.autograd.grad(expected, p)
    how = {"mask": mask, **({"old": given["old"]} if policy.reference == "old" else {})}
    how |= {"reference": given["reference"]} if policy.kl else {}
    own = given["p"].clone().requires_grad_()
    loss = policy.loss(own, given["advantages"], **how)
    loss.backward()
    torch.testing.assert_close(own.grad, gradient)
    assert own.grad is not None and own.grad.any()
    torch.testing.assert_close(loss, expected)
    again = p.detach().clone().requires_grad_()
    rewards.reward_loss(
        again, policy(again, given["advantages"], **{k: v.nan_to_num(-1.0) for k, v in how.items()})
    ).backward()
    torch.testing.assert_close(again.grad, gradient, rtol=1e-6, atol=1e-9)


@both
@pytest.mark.parametrize("name", PAPERS)
def test_ten_steps(name: str, convolutions: bool) -> None:
    """A network's answers are one token each; the old policy is what it was a step before, the reference what it was at first."""
    policy, paper = PAPERS[name]
    model, twin, first = (small_model(convolutions) for _ in range(3))
    lfpgraph.wrap(model, "gradient")
    before, mask = copy.deepcopy(twin), torch.ones(8, 1, dtype=torch.bool)
    for x, y in batches(convolutions):
        a = torch.randn(8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(int(y.sum())))
        with torch.no_grad():
            o, q = (rewards.log_probs_of(m(x), y).unsqueeze(1) for m in (before, first))
        before.load_state_dict(twin.state_dict())
        descend([*twin.parameters()], paper(twin(x).log_softmax(1).gather(1, y[:, None]), o, q, a, mask))
        how = ({"old": o} if policy.reference == "old" else {}) | ({"reference": q} if policy.kl else {})
        descend([*model.parameters()], policy.loss(rewards.log_probs_of(model(x), y).unsqueeze(1), a.squeeze(1), **how))
    for p, q, old in zip(model.parameters(), twin.parameters(), first.parameters()):
        assert (p - old).norm() > 1e-4
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_bounds_stop_tokens_and_one_number_a_time_will_do() -> None:
    given = drawn()
    p, o = given["p"][0], given["old"][0]
    a = (p - o).sign() * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    own = p.clone().requires_grad_()
    PolicyGradient.grpo().loss(own, a, old=o).backward()
    stopped = ((p - o).exp() > 1.2) & (a > 0) | ((p - o).exp() < 0.8) & (a < 0)
    assert stopped.any() and not stopped.all() and torch.equal(own.grad == 0, stopped)
    on_policy = p.clone().requires_grad_()
    PolicyGradient.ppo().loss(on_policy, a).backward()  # it has just spoken: every ratio is 1
    torch.testing.assert_close(on_policy.grad, -a / 7)


def test_advantages() -> None:
    scores = torch.tensor([1.0, 0.0, 0.5, 4.0, 4.0, 7.0]).double()
    found = rewards.group_advantages(scores, torch.tensor([9, 2, 9, 2, 9, 5]))
    for rows in ([0, 2, 4], [1, 3]):
        own = scores[rows]
        torch.testing.assert_close(found[rows], (own - own.mean()) / (own.std() + 1e-4))
    assert found[5] == 0
    left = rewards.group_advantages(scores, 3, scale="none", leave_one_out=True)
    torch.testing.assert_close(left[0], scores[0] - scores[1:3].mean())
    whole = rewards.group_advantages(scores, 2, scale="batch")
    torch.testing.assert_close(whole[2], (scores[2] - scores[2:4].mean()) / (scores.std() + 1e-4))
    r, v = torch.randn(2, 3, 5).double()
    mask = torch.tensor([5, 3, 4])[:, None] > torch.arange(5)
    found = rewards.generalized_advantages(r.masked_fill(~mask, math.nan), v, gamma=0.9, decay=0.8, mask=mask)
    for i, length in enumerate([5, 3, 4]):
        for t in range(length):
            ahead = [v[i, k + 1] if k + 1 < length else 0.0 for k in range(length)]
            delta = [r[i, k] + 0.9 * ahead[k] - v[i, k] for k in range(length)]
            expected = sum((0.72 ** (k - t)) * delta[k] for k in range(t, length))
            torch.testing.assert_close(found[i, t], expected)
    assert not found[~mask].any()


def test_hybrids() -> None:
    """HPT gives a question to demonstrations where no answer was right; SASR the more steps, the larger their gradient."""
    of_answers, of_questions = rewards.HybridPostTraining().weights([0, 1, 0, 0, 1, 1], 2)
    assert of_answers.tolist() == [1, 1, 0, 0, 1, 1] and of_questions.tolist() == [0, 1, 0]
    soft = rewards.HybridPostTraining(gate=0.5, rl=2.0, sft=0.1)
    assert [w.tolist() for w in soft.weights([0, 1, 1], torch.tensor([4, 4, 1]))] == [
        [0, 0, 2],
        [0, pytest.approx(0.1)],
    ]
    p = torch.randn(3, 4, requires_grad=True)
    PolicyGradient.sft().loss(p, weights=torch.tensor([0.0, 1.0, 0.0])).backward()
    torch.testing.assert_close(p.grad, -torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4) / 12)

    sasr = rewards.SASR(2, gamma=0.5)
    for norm in (8.0, 4.0, 1.0):
        assert sasr.noted == 2 or sasr.next() == "sft"
        sasr.note(norm)
    assert sasr.share == pytest.approx(1.0 / (1.0 + 0.5 * 4.0))
    again = rewards.SASR(2, gamma=0.5)
    again.load_state_dict(sasr.state_dict())
    steps = [sasr.next() for _ in range(600)]
    assert steps == [again.next() for _ in range(600)]
    assert steps.count("sft") / 600 == pytest.approx(1 / 3, abs=0.06)


def test_answers_of_a_wrapped_model_get_better() -> None:
    """Three tokens of four kinds, right where they say what the question's signs are; GRPO on lfp, in a plain loop."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 12), nn.Unflatten(1, (3, 4))))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    grpo, right = PolicyGradient.grpo(), []
    for _ in range(60):
        x = torch.randn(16, 3).repeat_interleave(4, 0)
        with torch.no_grad():
            tokens = torch.distributions.Categorical(logits=model(x)).sample()
            then = rewards.log_probs_of(model(x), tokens)
        scores = (tokens == (x > 0)).float().mean(1)
        advantages = rewards.group_advantages(scores, 4)
        for _ in range(2):
            optimizer.zero_grad()
            grpo.loss(rewards.log_probs_of(model(x), tokens), advantages, old=then).backward()
            optimizer.step()
        right.append(float(scores.mean()))
    assert sum(right[:5]) / 5 < 0.4 and sum(right[-5:]) / 5 > 0.8


@pytest.mark.parametrize(
    ("reward", "loss", "shape", "labels"),
    [
        (rewards.Energy(0.1), energy_loss, (8,), torch.tensor([1, 0, 0, 1, 0, 1, 0, 0])),
        (rewards.Energy(0.1), energy_loss, (8, 1), torch.tensor([1, 0, 0, 1, 0, 1, 0, 0])),
        (rewards.Energy(0.1), energy_loss, (8, 3), torch.tensor([1, 0, 0, 1, 0, 1, 0, 0])),
        (rewards.Correlation(), correlation_loss, (8, 3), torch.arange(24.0).double().sin().reshape(8, 3)),
        (rewards.Correlation(), correlation_loss, (8, 2, 2), torch.arange(32.0).double().sin().reshape(8, 2, 2)),
        (rewards.Contrast(0.5), contrast_loss, (8, 3), torch.tensor([1, 7, 1, 2, 2, 1, 9, 7])),
    ],
)
def test_is_the_loss(reward: Any, loss: Any, shape: tuple[int, ...], labels: Tensor) -> None:
    o = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (expected,) = torch.autograd.grad(loss(o, labels), o)
    (rewards.reward_loss(o, reward(o, labels)) / len(o)).backward()
    torch.testing.assert_close(o.grad, expected)


@both
@pytest.mark.parametrize(
    ("reward", "loss", "target"),
    [
        (rewards.Energy(0.1), energy_loss, lambda y: (y < 2).long()),
        (rewards.Correlation(), correlation_loss, lambda y: (torch.arange(1, 5) * y[:, None]).double().sin()),
        (rewards.Contrast(0.5), contrast_loss, lambda y: y),
        (rewards.Softmax(), lambda o, y: F.cross_entropy(o, y), lambda y: y),
        (rewards.SquaredError(), lambda o, t: F.mse_loss(o, t) * 2, lambda y: F.one_hot(y, 4).double()),
    ],
    ids=["energy", "correlation", "contrast", "softmax", "squared error"],
)
def test_ten_steps_of_a_reward(reward: Any, loss: Any, target: Any, convolutions: bool) -> None:
    model, twin = lfpgraph.wrap(small_model(convolutions), "gradient"), small_model(convolutions)
    for x, y in batches(convolutions):
        descend([*twin.parameters()], loss(twin(x), target(y)))
        outputs = model(x)
        descend([*model.parameters()], rewards.reward_loss(outputs, reward(outputs, target(y))) / len(x))
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


def test_what_does_not_vary_has_no_correlation() -> None:
    o = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 0.0]])
    found = rewards.Correlation()(o, torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    assert not found.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: PolicyGradient("new"), "choose one of self, old, one"),
        (lambda p: PolicyGradient(low=-0.1), "low=-0.1"),
        (lambda p: PolicyGradient("self", low=0.2), "reference='old'"),
        (lambda p: PolicyGradient(low=0.2, cap=2.0), "give one or the others"),
        (lambda p: PolicyGradient.grpo(most=1.1), "larger than the bound above, 1.2"),
        (lambda p: PolicyGradient.gspo(kl=0.1, kl_weighted=True), "ratio of tokens"),
        (lambda p: PolicyGradient.ppo(level="product"), "needs mean='sums'"),
        (lambda p: PolicyGradient.ppo(length=3), "needs mean='sums'"),
        (lambda p: PolicyGradient.grpo(kl=0.1).loss(p), "reference="),
        (lambda p: PolicyGradient.sft().loss(p, old=p), "no use of the old"),
        (lambda p: PolicyGradient.grpo().loss(p, torch.zeros(4)), r"advantages of shape \[4\]"),
        (lambda p: PolicyGradient.grpo().loss(p.long()), "floats"),
        (lambda p: rewards.log_probs_of(p, torch.tensor([0, 1, 4])), "between 0 and 3"),
        (lambda p: rewards.group_advantages(torch.zeros(5), 2), "of 2 answers each"),
        (lambda p: rewards.generalized_advantages(p, p[:2]), "alike"),
        (lambda p: rewards.SASR(0), "one step at least"),
        (lambda p: rewards.Energy()(p, torch.ones(3)), "3 of 3 rows are data"),
        (lambda p: rewards.Contrast()(p, torch.arange(3)), "all labels are different"),
        (lambda p: rewards.Contrast(0.0), "positive"),
        (lambda p: rewards.Correlation()(p, torch.zeros(3)), "targets of shape"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        call(torch.randn(3, 4))
