"""Policies attached to optimizers: twice, to another one, taken off, beside frozen parameters and later ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lfpgraph.errors import PolicyError
from lfpgraph.training.policies import ElectronicSynapses, Policy, SaRA, SmallestWeights, TopK


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [lambda: SaRA(0.3), ElectronicSynapses, SmallestWeights, TopK])
def test_attached_twice(make: Callable[[], Policy], caplog: pytest.LogCaptureFixture) -> None:
    """To the same optimizer: one clear line. To another one: it begins anew, and does not act on the first with what belongs to
    the second. Taken off, even twice, it can be attached again. Frozen parameters stay, those given later are told of."""
    model, other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), nn.Sequential(nn.Linear(4, 5))
    model[0].bias.requires_grad_(False)
    first, second = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    policy = make()
    handle, bias = policy.attach(first, model), model[0].bias.clone()  # devices are written to when they are attached
    _step(model, first)
    with pytest.raises(PolicyError, match=rf"{type(policy).__name__}.* already"):
        policy.attach(first, model)
    if policy.remembers():
        with pytest.raises(PolicyError, match=f"{type(policy).__name__} is attached to .* already"):
            make().attach(first, model)
    handle.remove(), handle.remove()
    assert {id(p) for p in first.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    policy.attach(first, model)
    _step(model, first)
    policy.attach(second, other)
    _step(other, second)
    if policy.remembers():
        with pytest.raises(PolicyError, match="since been attached to another optimizer"):
            _step(model, first)
    assert torch.allclose(model[0].bias, bias, atol=1e-6)
    assert type(pickle.loads(pickle.dumps(policy))) is type(policy)
    added = nn.Linear(5, 5)
    other.append(added)
    second.add_param_group({"params": list(added.parameters())})
    _step(other, second)
    assert "given parameters after it was attached" in caplog.text
    with pytest.raises(PolicyError, match="takes an optimizer and then the model"):
        make().attach(other, second)  # type: ignore[arg-type]
