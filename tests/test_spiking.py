"""`lfp-snn`: the paper's rule on spiking networks, however they are written; reward on what chooses and rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.graph.neurons import find_neurons
from lfpgraph.rewards import RateCodedSpikes

from .support.helpers import assert_same, relative, secant_slope
from .support.spiking_models import Spiking


def _spiking(seed: int = 3, **options: object) -> tuple[Spiking, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = Spiking(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.5).add_(0.25)
    return model, torch.rand(7, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def _reference(model: Spiking, x: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The LFP paper's rule in rewards, step by step: a membrane shares its reward by absolute contribution."""
    beta, zero = model.beta, model.reset == "zero"
    trace, u = [], [torch.zeros(7, 8).double(), torch.zeros(7, 3).double()]
    for _ in range(model.steps):
        inputs, step = x, []
        for i, layer in enumerate((model.first, model.second)):
            current = inputs @ layer.weight.T + layer.bias
            v = beta * u[i] + current
            spikes = (v > 1).double()
            step.append((inputs, beta * u[i], current, v, spikes))
            u[i] = v * (1 - spikes) if zero else v - spikes
            inputs = spikes
        trace.append(step)
    reward = RateCodedSpikes()(torch.stack([step[1][4] for step in trace]), labels)
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    to_input, carried = torch.zeros_like(x), [torch.zeros(7, 8).double(), torch.zeros(7, 3).double()]
    for t in reversed(range(model.steps)):
        to_spikes = reward[t]
        for i, (name, layer) in reversed(list(enumerate([("first", model.first), ("second", model.second)]))):
            inputs, leak, current, v, spikes = trace[t][i]
            r = to_spikes + carried[i]
            share = r / (leak.abs() + current.abs() + 1e-12)
            found[f"{name}.weight"] += layer.weight.abs() * (share.T @ inputs)
            found[f"{name}.bias"] += layer.bias.abs() * share.sum(0)
            carried[i] = share * leak
            to_spikes = inputs * (share @ layer.weight)
        to_input += to_spikes
    return found, to_input


@torch.no_grad()
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_equals_the_paper_in_rewards(reset: str) -> None:
    model, x, labels = _spiking(reset=reset)
    spikes = model(x)
    assert 0.1 < spikes.mean() < 0.9
    expected, to_input = _reference(model, x, labels)
    composite = lfpgraph.get_composite("lfp-snn").with_options(epsilon=1e-12)
    found = lfpgraph.feedback(model, x, RateCodedSpikes()(spikes, labels), composite)
    # A hidden spike that did not happen reads its reward times ZERO_REWARD, where the paper has exactly none.
    assert_same({name: found[name] for name in expected}, expected, 1e-4)
    assert relative(found["input_0"], to_input) < 1e-4


def _feedback(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    lfpgraph.wrap(model, "lfp-snn")
    model.zero_grad(set_to_none=True)
    spikes = model(x)
    lfpgraph.reward_loss(spikes, RateCodedSpikes()(spikes, labels)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    lfpgraph.unwrap(model)
    return found


def test_wrapped_equals_eager() -> None:
    model, x, labels = _spiking()
    found = _feedback(model, x, labels)
    eager = lfpgraph.feedback(model, x, lambda spikes: RateCodedSpikes()(spikes, labels), "lfp-snn")
    assert_same({name: -g for name, g in found.items()}, {name: eager[name] for name in found}, 1e-5)


def test_zero_reset_written_twice() -> None:
    """A comparison that spikes and reset share passes the reward as two of its own do."""
    model, x, labels = _spiking(reset="zero")
    expected = _feedback(model, x, labels)
    model.reset = "where"
    assert_same(_feedback(model, x, labels), expected, 1e-9)


class _Snntorch(nn.Module):
    """The same network of `snntorch.Leaky`."""

    def __init__(self, twin: Spiking, mechanism: str) -> None:
        snn = pytest.importorskip("snntorch")
        super().__init__()
        self.first, self.second, self.steps = twin.first, twin.second, twin.steps
        self.lif1 = snn.Leaky(beta=twin.beta, reset_mechanism=mechanism)
        self.lif2 = snn.Leaky(beta=twin.beta, reset_mechanism=mechanism)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, outputs = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.first(x), mem1)
            spikes, mem2 = self.lif2(self.second(spikes), mem2)
            outputs.append(spikes)
        return torch.stack(outputs)


@pytest.mark.parametrize("mechanism, reset", [("subtract", "later"), ("zero", "later-zero"), ("none", "none")])
def test_snntorch_equals_plain_torch(mechanism: str, reset: str) -> None:
    model, x, labels = _spiking(reset=reset)
    model, x = model.float(), x.float()
    theirs = _Snntorch(model, mechanism)
    assert torch.equal(theirs(x), model(x)) and 0.1 < model(x).mean() < 0.95
    expected = _feedback(model, x, labels)
    assert_same(_feedback(theirs, x, labels), expected, 1e-5)


def test_membrane_may_go_negative_and_back() -> None:
    """Reward for a silent neuron raises its membrane whatever the membrane's sign."""
    model = Spiking((2, 2, 2), steps=1)
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[2.0, 0], [0, 2.0]]))
        model.second.weight.copy_(torch.tensor([[0.5, 0.5], [-0.5, -0.5]]))
        model.first.bias.zero_()
        model.second.bias.zero_()
    x = torch.ones(1, 2)
    found = lfpgraph.feedback(model, x, torch.ones(1, 1, 2), "lfp-snn")
    assert not model(x).any() and (found["second.weight"] > 0).all()


@pytest.mark.parametrize("epsilon", [1e-9, 1e-6, 1e-2])
def test_reward_on_silence_does_not_hang_on_epsilon(epsilon: float) -> None:
    model, x, labels = _spiking()
    expected = _feedback(model, x, labels)
    composite = lfpgraph.get_composite("lfp-snn").with_options(epsilon=epsilon)
    given = lambda spikes: RateCodedSpikes()(spikes, labels)  # noqa: E731
    eager = lfpgraph.feedback(model, x, given, composite)
    assert all(relative(eager[name], -g) < 20 * epsilon + 1e-5 for name, g in expected.items())


@pytest.mark.parametrize("reset", ["subtract", "zero", "where", "later", "later-zero", "none"])
def test_neurons_are_found(reset: str) -> None:
    model, x, _ = _spiking(reset=reset)
    neurons = find_neurons(lfpgraph.trace(model, x))
    assert len(neurons.membranes) == 8
    # One way through time for each neuron and step but the first. Resets: "where" has no operand, snntorch's are detached.
    assert len(neurons.earlier) == 6
    assert len(neurons.resets) == (6 if reset in ("subtract", "zero") else 0)


def test_recurrent_spikes_are_ways_through_time() -> None:
    model, x, _ = _spiking(recurrent=True)
    assert len(find_neurons(lfpgraph.trace(model, x)).earlier) == 6 + 3


def test_spikes_added_to_a_layer_are_no_reset() -> None:
    """A residual connection of spikes (SEW) brings no membrane back to itself."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = (self.a(x) > 0).float()
            return first + (self.b(first) > 0).float()

    neurons = find_neurons(lfpgraph.trace(Residual(), torch.randn(3, 4)))
    assert len(neurons.membranes) == 2 and not neurons.resets and not neurons.earlier


def test_learns_digits() -> None:
    """Two LIF layers, 64-128-10, threshold 1, beta 0.9, 15 steps, as a user would train them: 96 % of held-out digits."""
    (x, y), (test_x, test_y) = digits()
    torch.manual_seed(0)
    model = lfpgraph.wrap(Spiking((64, 128, 10), steps=15), "lfp-snn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=10 * 22)
    reward = RateCodedSpikes()
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(64):
            spikes = model(x[rows].flatten(1))
            optimizer.zero_grad()
            lfpgraph.reward_loss(spikes, reward(spikes, y[rows])).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        accuracy = (reward.predictions(model(test_x.flatten(1))) == test_y).float().mean().item()
    assert accuracy >= 0.96


class _Chooser(nn.Module):
    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.choose(self.first(x)))


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda h: nn.functional.one_hot(h.argmax(-1), 6).to(h.dtype),
    "argmax-scatter": lambda h: torch.zeros_like(h).scatter(-1, h.argmax(-1, keepdim=True), 1.0),
    "equals-max": lambda h: (h == h.amax(-1, keepdim=True)).to(h.dtype),
    "gated-argmax": lambda h: h * nn.functional.one_hot(h.argmax(-1), 6).to(h.dtype),
    "heaviside": lambda h: torch.heaviside(h, torch.zeros((), dtype=h.dtype)),
    "max-index": lambda h: nn.functional.one_hot(h.max(-1).indices, 6).to(h.dtype),
    "round": lambda h: torch.round(4 * h) / 4,
    "sign": torch.sign,
    "step": lambda h: (h > 0).to(h.dtype),
    "topk-mask": lambda h: torch.zeros_like(h).scatter(-1, h.topk(2).indices, 1.0),
    "topk-values": lambda h: torch.zeros_like(h).scatter(-1, h.topk(2).indices, h.topk(2).values),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHOICES)
def test_what_chooses_passes_its_reward(name: str) -> None:
    """Reward is kept on its way through a choice, entry by entry: the chosen take it, under lfp and lfp-snn."""
    torch.manual_seed(0)
    model, x = _Chooser(CHOICES[name]).double(), torch.randn(9, 4, dtype=torch.float64)
    reward = torch.rand(9, 3, dtype=torch.float64)
    reward = reward * (model(x) != 0)  # a row of silence has nobody to take a reward
    found = lfpgraph.feedback(model, x, reward, "lfp-0")
    assert found["first.weight"].abs().sum() > 0
    torch.testing.assert_close(found["input_0"].sum(), reward.sum(), rtol=1e-5, atol=0)
    h = model.first(x)
    silent = (model.choose(h) == 0).all(0)
    if name != "sign":
        assert lfpgraph.feedback(model, x, reward, "lfp-snn")["first.weight"].abs().sum() > 0
    assert not found["first.weight"][silent].any()


class _Secants(torch.autograd.Function):
    """A spike with the slope that `lfp` gives it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 1).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return s * secant_slope(lambda u: (u > 1).to(s), u)


def _by_hand(model: Spiking, x: Tensor) -> Tensor:
    u1, u2, outputs = torch.zeros(len(x), 8).double(), torch.zeros(len(x), 3).double(), []
    for _ in range(model.steps):
        u1 = model.beta * u1 + model.first(x)
        fired = _Secants.apply(u1)
        u2 = model.beta * u2 + model.second(fired)
        outputs.append(_Secants.apply(u2))
        u1, u2 = (
            u - s.detach() if model.reset == "subtract" else u * (1 - s.detach())
            for u, s in ((u1, fired), (u2, outputs[-1]))
        )
    return torch.stack(outputs)


@pytest.mark.parametrize("reset", ["subtract", "zero", "where"])
@pytest.mark.parametrize("engine", ["live", "static"])
def test_lfp_takes_secants_of_spikes_and_nothing_of_resets(reset: str, engine: str) -> None:
    model, x, labels = _spiking(reset=reset)
    loss = nn.functional.cross_entropy(_by_hand(model, x).sum(0), labels)
    expected = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))
    lfpgraph.wrap(model, lfpgraph.get_composite("lfp").with_options(epsilon=0.0, scale="signal"), engine=engine)
    nn.functional.cross_entropy(model(x).sum(0), labels).backward()
    assert_same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected, 1e-9)
