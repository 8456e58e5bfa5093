"""skorch, an actor-critic, and models that somebody has put into a wrapper before."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import skorch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph

from .support import difference, grads_of


def network(inputs: int = 6, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


class Grads(skorch.callbacks.Callback):
    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        self.first = getattr(self, "first", None) or grads_of(net.module_)


@pytest.mark.client("skorch", "NeuralNetClassifier.fit", "give it the wrapped module")
def test_skorch() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 6)).astype(np.float32)
    y = x[:, :3].argmax(1)
    found = []
    for composite in (None, "gradient", "lfp-epsilon"):
        module = network()
        if composite is not None:
            lfpgraph.wrap(module, composite)
        grads = Grads()
        net = skorch.NeuralNetClassifier(
            module, criterion=nn.CrossEntropyLoss, max_epochs=20, lr=0.1, train_split=None, verbose=0, callbacks=[grads],
            iterator_train__shuffle=False, optimizer=torch.optim.AdamW, batch_size=16,
        )  # fmt: skip
        net.set_params(lr=1e-2)
        net.fit(x, y)
        found.append((grads.first, float((net.predict(x) == y).mean())))
    assert difference(found[1][0], found[0][0]) == 0 and difference(found[2][0], found[0][0]) > 0.1
    assert found[2][1] > 0.8


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
    rewards = {}
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        for composite in (None, "gradient", "lfp-epsilon"):
            model = ActorCritic()
            if composite is not None:
                lfpgraph.wrap(model, composite)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for i in range(80):
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
                optimizer.step()
            rewards[composite] = float(reward.mean())
    assert [r.getMessage() for r in caplog.records if r.name == "lfpgraph"] == []
    assert rewards["gradient"] == rewards[None] and rewards["lfp-epsilon"] > 0.8


@pytest.mark.client("torch", "a model inside `torch.compile`: refused with one line", "wrap first, compile then")
def test_compiled_before() -> None:
    with pytest.raises(lfpgraph.errors.WrapError, match="compiled already"):
        lfpgraph.wrap(nn.Sequential(torch.compile(network(), backend="eager")))
