"""Functions with a jump under `lfp`: the feedback is bounded however near the jump a value is, and it learns."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites import steps

Function = Callable[[Tensor], Tensor]


def zero(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype)


# By name: a function, and the same written with numbers in place of tensors, or None.
JUMPS: dict[str, tuple[Function, Function | None]] = {
    "steps and a bend": (
        lambda x: torch.heaviside(x, zero(x)) + torch.sign(x) + F.hardsigmoid(x),
        lambda x: (x > 0).to(x.dtype) + torch.sign(x) + F.hardsigmoid(x),
    ),
    "a step and a sigmoid": (
        lambda x: torch.sign(x) + torch.sigmoid(x * torch.tensor(2.0).to(x)),
        lambda x: torch.sign(x) + torch.sigmoid(x * 2.0),
    ),
    "a step added to what it cuts": (
        lambda x: (x > 0).to(x.dtype) + x - x.detach(),
        None,
    ),
    "ones where it is below zero": (
        lambda x: torch.where(x > 0, x, torch.ones_like(x)),
        lambda x: torch.where(x > 0, x, 1.0),
    ),
    "the rest of a division": (
        lambda x: torch.remainder(x, torch.tensor(0.7).to(x)),
        lambda x: torch.remainder(x, torch.tensor(0.7).item()),
    ),
    "a sign copied": (lambda x: torch.copysign(torch.ones_like(x), x), None),
    "cut at a half": (lambda x: x * (x > 0.5), None),
    "one more above zero": (lambda x: torch.where(x > 0, x + 1, x), None),
    "masked": (lambda x: x.masked_fill(x < 0, 1.0), None),
    "what rounding leaves": (lambda x: x - x.detach().round(), None),
    "half precision": (
        lambda x: (torch.heaviside(x.half(), torch.zeros((), dtype=torch.half)) + torch.sigmoid(x.half())).to(x.dtype),
        lambda x: ((x.half() > 0).half() + torch.sigmoid(x.half())).to(x.dtype),
    ),
}
NEAR = torch.tensor([1e-30, 1e-12, 1e-6, 1e-3, 0.05, 0.5, 1.0, 3.0])


class Net(nn.Module):
    """Some functions, each of a column; each number is multiplied by 1 before, so that its feedback is the function's slope."""

    def __init__(self, *functions: Function) -> None:
        super().__init__()
        self.weight, self.functions = nn.Parameter(torch.ones(1, 1)), functions

    def forward(self, x: Tensor) -> Tensor:
        columns = x.split(1, 1)
        return torch.cat([f(F.linear(c, self.weight.to(c.dtype))) for f, c in zip(self.functions, columns)], 1)


def slopes(functions: dict[str, Function], x: Tensor, engine: str) -> dict[str, Tensor]:
    x = x[:, None].repeat(1, len(functions)).requires_grad_()
    lfpgraph.wrap(Net(*functions.values()), engine=engine)(x).sum().backward()
    assert x.grad is not None
    return dict(zip(functions, x.grad.unbind(1)))


def test_nothing_is_unbounded_near_a_jump() -> None:
    x = torch.cat([-NEAR.flip(0), torch.zeros(1), NEAR]).double()
    live, static = (slopes({name: f for name, (f, _) in JUMPS.items()}, x, engine) for engine in ("live", "static"))
    for name, found in live.items():
        torch.testing.assert_close(found, static[name], msg=lambda m, n=name: f"{n}: {m}")
        assert found.any(), name
        assert found.abs().max() < 4, name
    away = (x.abs() != 0.5) & (x != 0)  # at 0.5 an end of the secant is at zero, and so may rounding be
    for name, expected in slopes({name: f for name, (_, f) in JUMPS.items() if f is not None}, x, "live").items():
        torch.testing.assert_close(live[name][away], expected[away], msg=lambda m, n=name: f"{n}: {m}")


RELUS: dict[str, Function] = {
    "maximum": lambda x: torch.maximum(x, zero(x)),
    "of zeros alike": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("engine", ["live", "static"])
def test_a_relu_made_with_a_tensor_of_zeros_is_a_relu(engine: str) -> None:
    x = torch.cat([-NEAR, NEAR]).double()
    bounds = torch.tensor([0.0, 1.0]).repeat(8)[:, None].double()
    found = slopes({**RELUS, "some": lambda x: torch.maximum(x, bounds), "of 1": lambda x: x.clamp_min(1.0)}, x, engine)
    for name in RELUS:
        torch.testing.assert_close(found[name], (x > 0).double(), msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(found["some"], torch.where(bounds[:, 0] == 0, (x > 0).double(), found["of 1"]))


def test_bounds_are_looked_at_anew_in_each_step() -> None:
    """A plan is kept by the operations; what a buffer holds may change."""

    class Bounded(Net):
        def __init__(self) -> None:
            super().__init__(lambda x: torch.maximum(x, self.bound.to(x)))
            self.register_buffer("bound", torch.zeros(()))

    for engine in ("live", "static"):
        model, x = lfpgraph.wrap(Bounded(), engine=engine), torch.tensor([-0.2, 0.2, 0.9])
        for bound in (0.0, 1.0, 0.0):
            model.bound.fill_(bound)
            x = x.detach().clone().requires_grad_()
            model(x[:, None]).sum().backward()
            expected = [0.0, 1.0, 1.0] if bound == 0 else [0.0, 0.0, 0.4]
            torch.testing.assert_close(x.grad, torch.tensor(expected))


@pytest.mark.parametrize("engine", ["live", "static"])
def test_steps_added_to_a_bend_learn(engine: str) -> None:
    """Without the secant it ends at 1.3 or worse, with feedback of a thousand and more; by chance it is 1.39."""
    function = JUMPS["steps and a bend"][0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    y = (x @ torch.randn(16, 4, generator=generator)).argmax(1)
    torch.manual_seed(1)

    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(function(self.first(x)))

    model = lfpgraph.wrap(Stepped(), engine=engine)
    optimizer, largest = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.0
    for _ in range(40):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        largest = max(largest, *(float(p.grad.abs().max()) for p in model.parameters()))
        optimizer.step()
    assert largest < 10
    assert loss < 0.3


REPEATING: dict[str, Function] = {
    "remainder": lambda x: torch.remainder(x, 1.0),
    "of a tensor": lambda x: torch.remainder(x, torch.tensor(1.0).to(x)),
    "of a long period": lambda x: torch.remainder(x, 100.0),
    "an angle": lambda x: torch.remainder(x + math.pi, 2 * math.pi) - math.pi,
    "fmod": lambda x: torch.fmod(x, 0.5),
    "floor": lambda x: x - x.floor(),
    "falls": lambda x: 1 - 2 * x.frac(),
    "there and back": lambda x: (torch.remainder(x, 1.0) - 0.5).abs(),
    "a wave": lambda x: torch.sin(2 * math.pi * x),
    "a wave twice as short as the secant": lambda x: torch.sin(10 * x),
}


def test_what_repeats_within_a_secant_hands_on_its_slope() -> None:
    x = torch.tensor([-1.7, -0.9, -0.3, -0.01, 0.01, 0.2, 0.45, 0.8, 1.3, 2.6, 99.8]).double()
    for engine in ("live", "static"):
        for name, found in slopes(REPEATING, x, engine).items():
            at = x.clone().requires_grad_()
            (expected,) = torch.autograd.grad(REPEATING[name](at).sum(), at)
            torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("engine", ["live", "static"])
def test_what_grows_as_an_exponential_hands_on_its_slope(engine: str) -> None:
    """As the last, endless stretch of a ray in a radiance field has it: an end of the secant was infinite."""
    x, lengths = torch.tensor([0.01, 0.3, 2.0]).double(), torch.tensor([[1.0], [30.0], [1e10]]).double()
    functions: dict[str, Function] = {
        "a tensor": lambda x: 1 - torch.exp(-x * lengths),
        "a number": lambda x: torch.exp(-100 * x),
        "both ways": torch.sinh,
    }
    for name, found in slopes(functions, x, engine).items():
        at = x[:, None].clone().requires_grad_()
        (expected,) = torch.autograd.grad(functions[name](at).sum(), at)
        torch.testing.assert_close(found, expected[:, 0], msg=lambda m, n=name: f"{n}: {m}")


STEEP: dict[str, Function] = {
    "a sigmoid": lambda x: torch.sigmoid(1000 * x),
    "levels": lambda x: sum((torch.sigmoid(50 * (x - k)) for k in (-2, -1, 0, 1, 2)), torch.zeros_like(x)),
    "a bell": lambda x: torch.exp(-50 * x * x),
}


def test_what_is_steep_keeps_the_secant() -> None:
    x = torch.tensor([-1.2, -0.3, 0.1, 0.3, 0.8]).double()
    for name, found in slopes(STEEP, x, "live").items():
        secant = STEEP[name](x + 0.5) - STEEP[name](x - 0.5)
        torch.testing.assert_close(found, secant, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("engine", ["live", "static"])
def test_what_comes_before_a_sawtooth_learns(engine: str) -> None:
    """The layer behind it is frozen. Without the slope nothing before it moves."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), Sawtooth(), nn.Linear(8, 2)), torch.rand(64, 4) * 2 - 1
    with torch.no_grad():
        model[0].weight.mul_(0.3)
        model[0].bias.fill_(0.5)  # within one period, but for a few
        y = model(x)
        model[0].weight.add_(0.1 * torch.randn(8, 4))
    model[2].requires_grad_(False)
    lfpgraph.wrap(model, engine=engine)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(40):
        losses.append(F.mse_loss(model(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 3


class Sawtooth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.remainder(x, 1.0)


@pytest.mark.parametrize("compare", [torch.gt, torch.ge, torch.lt, torch.le])
@pytest.mark.parametrize("engine", ["static", "live"])
def test_a_comparison_with_a_number_has_the_secants_of_any_step(
    compare: Callable[..., Tensor], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slope is known; it is that of the lines through f(x - h) and f(x + h)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), _Compared(compare), nn.Linear(40, 3)).double()
    x, found, known = torch.randn(9, 6, dtype=torch.float64), [], []
    threshold = steps._threshold
    monkeypatch.setattr(steps, "_threshold", lambda *given: known.append(threshold(*given)) or known[-1])
    for _ in range(2):
        wrapped = lfpgraph.wrap(copy.deepcopy(model), "lfp", engine=engine)
        wrapped(x).square().sum().backward()
        found.append([p.grad for p in wrapped.parameters()])
        monkeypatch.setattr(steps, "_threshold", lambda *given: None)
    assert known == [(0.3, 1 if compare in (torch.gt, torch.ge) else -1)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


class _Compared(nn.Module):
    def __init__(self, compare: Callable[..., Tensor]) -> None:
        super().__init__()
        self.compare = compare

    def forward(self, x: Tensor) -> Tensor:
        return self.compare(x, 0.3).to(x.dtype)
