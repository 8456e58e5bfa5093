"""skorch, an actor-critic, and models that somebody has put into a wrapper before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skorch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_first_step, grads_of, wrapped


def network(inputs: int = 6, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


class Grads(skorch.callbacks.Callback):
    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        self.first = getattr(self, "first", None) or grads_of(net.module_)


@pytest.mark.client("skorch", "NeuralNetClassifier.fit", "give it the wrapped module")
def test_skorch(caplog: pytest.LogCaptureFixture) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 6)).astype(np.float32)
    y = x[:, :3].argmax(1)

    def fit(way: str) -> tuple[dict[str, Tensor], float]:
        grads = Grads()
        net = skorch.NeuralNetClassifier(
            wrapped(network(), way), criterion=nn.CrossEntropyLoss, max_epochs=20, train_split=None, verbose=0, callbacks=[grads],
            iterator_train__shuffle=False, optimizer=torch.optim.AdamW, batch_size=16, lr=1e-2,
        )  # fmt: skip
        net.fit(x, y)
        return grads.first, float((net.predict(x) == y).mean())

    check_first_step(lambda way: fit(way)[0], caplog)
    assert fit("wrapped")[1] > 0.9


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.actor, self.critic = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        h = self.body(x).tanh()
        return torch.distributions.Categorical(logits=self.actor(h)), self.critic(h).squeeze(-1)


@pytest.mark.client("torch", "an actor-critic: a distribution and a value come out, PPO's loss")
def test_actor_critic(caplog: pytest.LogCaptureFixture) -> None:
    """A bandit with a context: the reward of the action that the first number asks for."""

    def train(way: str, steps: int) -> tuple[dict[str, Tensor], float]:
        model = wrapped(ActorCritic(), way)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first: dict[str, Tensor] = {}
        for i in range(steps):
            torch.manual_seed(i)
            x = torch.randn(64, 4)
            with torch.no_grad():
                old, _ = model(x)
                action = old.sample()
            reward = (action == (x[:, 0] > 0).long()).float()
            policy, value = model(x)
            ratio = (policy.log_prob(action) - old.log_prob(action)).exp()
            advantage = (reward - value).detach()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = -gain + 0.5 * F.mse_loss(value, reward) - 0.001 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            first = first or grads_of(model)
            optimizer.step()
        return first, float(reward.mean())

    check_first_step(lambda way: train(way, 1)[0], caplog)
    rewards = {way: train(way, 80)[1] for way in ("plain", "wrapped")}
    assert rewards["wrapped"] > rewards["plain"] - 0.05 and rewards["wrapped"] > 0.8


@pytest.mark.client("torch", "a part that `torch.compile` was called on before the wrap", "runs as it was written")
def test_compiled_before(caplog: pytest.LogCaptureFixture) -> None:
    def first(way: str) -> dict[str, Tensor]:
        inner = network()
        model = nn.Sequential(inner if way == "traced" else torch.compile(inner, backend="eager"))
        wrapped(model, way)
        torch.manual_seed(1)
        F.cross_entropy(model(torch.randn(8, 6)), torch.arange(8) % 3).backward()
        return {n.replace("_orig_mod.", ""): g for n, g in grads_of(model).items()}

    check_first_step(first, caplog)
