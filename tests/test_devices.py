"""Electronic synapses against devices written out one at a time; and what all policies of steps refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpgraph.errors import PolicyError
from lfpgraph.training.policies import Dendrites, ElectronicSynapses, Policies, SaRA, TopK

from .support.small_nets import batch, net


class Device:
    """A memory device as Chen, Peng and Yu 2018 write it, one at a time."""

    def __init__(self, pulses: int, v: float) -> None:
        self.pulses, self.a = pulses, pulses / v if v else math.inf

    def conductance(self, p: float, up: bool) -> float:
        if math.isinf(self.a):
            return p / self.pulses
        b = 1 / (1 - math.exp(-self.pulses / self.a))
        return b * (1 - math.exp(-p / self.a)) if up else -b * (1 - math.exp((p - self.pulses) / self.a)) + 1

    def after(self, g: float, n: float) -> float:
        """Where n pulses lead, by bisection for the number of pulses that has led to g."""
        if n == 0:
            return g
        low, high = 0.0, float(self.pulses)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self.conductance(middle, n > 0) < g else (low, middle)
        return self.conductance(min(max(low + n, 0), self.pulses), n > 0)

    def nearest(self, g: float) -> float:
        return min((self.conductance(p, True) for p in range(self.pulses + 1)), key=lambda level: abs(level - g))


def by_hand(w: float, device: Device, limit: float, one_way: bool, wanted: list[float]) -> list[float]:
    """A weight after each of the steps that an optimizer wants."""
    rest, found = 0.0, []
    plus, minus = (device.nearest(max(s * w / limit, 0.0)) for s in (1, -1))
    g = device.nearest(min(max((w / limit + 1) / 2, 0), 1))
    for step in [0.0, *wanted]:
        rest += step * device.pulses / ((1 if one_way else 2) * limit)
        n = float(torch.tensor(rest).round())
        rest -= n
        if one_way:
            plus, minus = device.after(plus, max(n, 0.0)), device.after(minus, max(-n, 0.0))
            w = limit * (plus - minus)
            if max(plus, minus) >= 0.9 and found:
                plus, minus = device.nearest(max(w / limit, 0.0)), device.nearest(max(-w / limit, 0.0))
                w = limit * (plus - minus)
        else:
            g = device.after(g, n)
            w = limit * (2 * g - 1)
        found.append(w)
    return found


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "one way"])
@pytest.mark.parametrize("v", [0.0, 3.0])
@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
def test_synapses_are_the_papers(convolutions: bool, v: float, one_way: bool) -> None:
    """Ten steps: every weight is where single devices end that get the same steps as pulses."""
    model = net(convolutions)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 2.0)
    policy = ElectronicSynapses(32, v, unidirectional=one_way, pattern="*weight")
    policy.attach(optimizer, model)
    history: dict[str, list[Tensor]] = {name: [p.detach().clone()] for name, p in model.named_parameters()}
    wanted: dict[str, list[Tensor]] = {name: [] for name in history}
    for step in range(10):
        x, y = batch(step, convolutions)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            wanted[name].append(-2.0 * p.grad.clone())
        optimizer.step()
        for name, p in model.named_parameters():
            history[name].append(p.detach().clone())
    moved = 0
    for name, seen in history.items():
        if name.endswith("bias"):
            torch.testing.assert_close(seen[-1], start[name] + torch.stack(wanted[name]).sum(0))
            continue
        limit = 2 * float(start[name].abs().max())
        for place in range(0, start[name].numel(), 3):
            steps = [float(s.flatten()[place]) for s in wanted[name]]
            expected = by_hand(float(start[name].flatten()[place]), Device(32, v), limit, one_way, steps)
            found = [float(s.flatten()[place]) for s in seen]
            assert found == pytest.approx(expected, abs=1e-6)
            moved += found[0] != found[-1]
    assert moved > 10


@pytest.mark.parametrize("one_way", [False, True])
def test_synapses_resume_and_train(one_way: bool) -> None:
    """Discrete, bounded weights learn; what is left of steps, and pairs, are in the optimizer's state."""

    def run(stop: int | None) -> nn.Module:
        model = net(False)
        how: dict[str, Any] = {"unidirectional": one_way, "limit": 1.0, "rounding": "carry"}
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        ElectronicSynapses(64, 1.0, **how).attach(optimizer, model)
        for step in range(200):
            if step == stop:
                kept, state = model.state_dict(), optimizer.state_dict()
                model = net(False)
                optimizer = torch.optim.SGD(model.parameters(), 0.5)
                ElectronicSynapses(64, 1.0, **how).attach(optimizer, model)
                model.load_state_dict(kept)
                optimizer.load_state_dict(state)
            x, _ = batch(step, False)
            optimizer.zero_grad()
            F.cross_entropy(model(x), (x[:, 0] > 0) + 2 * (x[:, 1] > 0)).backward()
            optimizer.step()
        return model

    whole, again = run(None), run(70)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))
    assert max(float(p.detach().abs().max()) for p in whole.parameters()) <= 1 + 1e-12
    x = torch.cat([batch(step, False)[0] for step in range(900, 940)])
    right = whole(x).argmax(1) == (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    assert right.float().mean() > 0.75


def test_roundings() -> None:
    """Steps of a fifth of a pulse: lost, kept until they are one, or taken as often as they should be."""
    moved = {}
    for rounding in ("nearest", "carry", "random"):
        layer = nn.Linear(500, 1, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), 1.0)
        ElectronicSynapses(100, limit=1.0, rounding=rounding).attach(optimizer, layer)
        for _ in range(20):
            layer.weight.grad = torch.full_like(layer.weight, -0.2 * 0.02)
            optimizer.step()
        moved[rounding] = layer.weight.detach() / 0.02
    assert not moved["nearest"].any()
    torch.testing.assert_close(moved["carry"], torch.full((1, 500), 4.0))
    assert moved["random"].mean().item() == pytest.approx(4.0, abs=0.3) and moved["random"].std() > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, o: ElectronicSynapses(0), "levels=0"),
        (lambda m, o: ElectronicSynapses(nonlinearity=(1.0, -2.0)), "nonlinearity=-2.0"),
        (lambda m, o: ElectronicSynapses(rounding="up"), "choose one of nearest, carry, random"),
        (lambda m, o: ElectronicSynapses()([("0.weight", _with_gradient(m))]), "has to be attached"),
        (lambda m, o: ElectronicSynapses().attach(o, m.half()), "0.weight is torch.float16, too coarse for 64 levels"),
        (lambda m, o: SaRA(), "a share, or else a threshold"),
        (lambda m, o: SaRA(0.1, threshold=1.0), "a share, or else a threshold"),
        (lambda m, o: SaRA(threshold=1e-30).attach(o, m), "no entry of 4 parameters is below the threshold 1e-30"),
        (lambda m, o: SaRA(0.5)(m.named_parameters()), "has to be attached"),
        (lambda m, o: [p.attach(o, m) for p in (SaRA(0.5), TopK(0.5))], "no trained parameter"),
        (
            lambda m, o: Dendrites(m, "lstm*"),
            "no linear layer or convolution of Sequential with weights of floats matches",
        ),
        (lambda m, o: Dendrites(nn.LSTM(2, 2)), "of LSTM with"),
        (lambda m, o: Dendrites(m).settle(), "grow.. comes before"),
        (lambda m, o: [Dendrites(m), Dendrites(m)], "has dendrites already"),
        (lambda m, o: _settled_at_once(m), "no error has reached 0"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    model = net(False)
    with pytest.raises(PolicyError, match=message):
        make(model, torch.optim.SGD(model.parameters(), 0.1))


def _with_gradient(model: Any) -> Tensor:
    model[0].weight.grad = torch.ones_like(model[0].weight)
    found: Tensor = model[0].weight
    return found


def _settled_at_once(model: nn.Module) -> None:
    grown = Dendrites(model)
    grown.grow()
    grown.settle()


def test_policies_forward_all_of_it() -> None:
    """SaRA and synapses inside `Policies` start, act and come off."""
    model = net(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    both = Policies(SaRA(0.3, pattern="0.*"), ElectronicSynapses(16, pattern="2.weight"))
    handle = both.attach(optimizer, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        x, y = batch(step, False)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    w = dict(model.named_parameters())
    places = (w["2.weight"] / (start["2.weight"].abs().max() * 2) + 1) * 8
    assert (w["2.weight"] != start["2.weight"]).any() and w["0.weight"].ne(start["0.weight"]).sum() < 40
    limit = both.policies[1].limits["2.weight"]
    places = (w["2.weight"] / limit + 1) / 2 * 16
    torch.testing.assert_close(places, places.round())
    handle.remove()
    assert len(optimizer.param_groups[0]["params"]) == 4
