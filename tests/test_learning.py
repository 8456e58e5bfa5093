"""`lfp`, the composite that is made for learning: each part of it, and both engines."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.learning import learning_structure

from .support.helpers import secant_slope


class Attention(nn.Module):
    """Products of activations of every kind (matrix products, gates, fused attention), a quotient, and else relu alone."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        written = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        fused = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        gate = torch.relu(self.gate(x))
        return self.out(gate * written + fused / (gate + 1)).sum(1)


class OneFunction(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(5, 7), nn.Linear(7, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def feedback(model: nn.Module, composite, x: Tensor, engine: str = "live") -> dict[str, Tensor]:
    twin = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    F.cross_entropy(twin(x), torch.arange(len(x)) % 3).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return feedback(model, "gradient", x)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=rtol, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


LFP = lfpgraph.get_composite("lfp")
PLAIN = LFP.with_options(unit="parameter")


@pytest.mark.parametrize("engine", ["live", "static"])
def test_theorem_one_holds_for_products(engine):
    """And for quotients: without epsilon, feedback is the gradient times abs(w); of vectors the gradient itself."""
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(4, 5, 8, dtype=torch.float64)
    true = gradients(model, x)
    expected = {n: true[n] * (p.detach().abs() if p.dim() > 1 else 1) for n, p in model.named_parameters()}
    same(feedback(model, PLAIN.with_options(epsilon=0.0, floor=0.0), x, engine), expected)
    shared = feedback(model, PLAIN.with_options(epsilon=0.0, floor=0.0, products="shared"), x, engine)
    assert F.cosine_similarity(shared["qkv.weight"].flatten(), expected["qkv.weight"].flatten(), dim=0) < 0.99


@pytest.mark.parametrize("function", [torch.sigmoid, F.softplus, F.gelu, torch.tanh, lambda x: torch.cos(x) * 2])
def test_smooth_activations_are_centred(function):
    torch.manual_seed(0)
    model, x = OneFunction(function).double(), torch.randn(6, 5, dtype=torch.float64)
    plain = replace(
        PLAIN.with_options(vectors="weight", floor=0.0, epsilon=1e-6), structure=partial(learning_structure, secant=0.0)
    )
    same(feedback(model, plain, x), feedback(model, "lfp-centred", x))
    same(feedback(model, plain, x), feedback(model, plain, x, "static"))
    found = feedback(model, plain.with_options(epsilon=0.0), x)["first.bias"]
    with torch.no_grad():
        z = model.first(x)
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight
        centred = s * (function(z) - function(torch.zeros_like(z))) / z
    torch.testing.assert_close(found, centred.sum(0) * model.first.bias.abs())


STEPS = {
    "comparison": lambda x: (x > 0.1).to(x.dtype),
    "sign": torch.sign,
    "round": torch.round,
    "two comparisons": lambda x: (x > 0).to(x.dtype) - (x < -0.5).to(x.dtype),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("engine", ["live", "static"])
def test_steps_hand_on_secants(step, engine):
    """Of several widths, in units of the spread of what is compared, the narrow ones weighing more; no derivative is taken."""
    torch.manual_seed(0)
    f = STEPS[step]
    model, x = OneFunction(f).double(), torch.randn(6, 5, dtype=torch.float64)
    found = feedback(model, LFP.with_options(epsilon=0.0), x, engine)["first.bias"]
    with torch.no_grad():
        z = model.first(x)
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight
    torch.testing.assert_close(found, (s * secant_slope(f, z)).sum(0))
    assert found.any()


@pytest.mark.parametrize("engine", ["live", "static"])
def test_binary_weights_learn(engine):
    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(7, 5) / 10), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(x @ torch.sign(self.weight).T))

    torch.manual_seed(0)
    model, x = Binary().double(), torch.randn(6, 5, dtype=torch.float64)
    found = feedback(model, LFP.with_options(scale="signal", epsilon=0.0), x, engine)["weight"]
    with torch.no_grad():
        w = model.weight
        h = x @ w.sign().T
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.out.weight * (h > 0)
    torch.testing.assert_close(found, s.T @ x * secant_slope(torch.sign, w))


def test_a_relu_written_with_a_comparison_is_no_step():
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64)
    written = OneFunction(lambda x: x * (x > 0)).double()
    fused = copy.deepcopy(written)
    fused.function = torch.relu
    same(feedback(written, LFP, x), feedback(fused, LFP, x), rtol=1e-4)


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize("function", [torch.tanh, F.softplus], ids=["by name", "by its values"])
def test_the_secant_of_an_activation(function, engine):
    torch.manual_seed(0)
    model, x = OneFunction(function).double(), torch.randn(6, 5, dtype=torch.float64)
    composite = replace(PLAIN.with_options(epsilon=0.0, floor=0.0), structure=partial(learning_structure, secant=1e-4))
    true = gradients(model, x)
    expected = {n: true[n] * (p.detach().abs() if p.dim() > 1 else 1) for n, p in model.named_parameters()}
    same(feedback(model, composite, x, engine), expected, rtol=1e-6)


@pytest.mark.parametrize("f", [torch.log, torch.logit, torch.reciprocal, lambda x: x**-1.5, torch.rsqrt, torch.sqrt])
@pytest.mark.parametrize("engine", ["live", "static"])
def test_the_secant_in_proportion(f, engine):
    """Through points at 1.5 x and x / 1.5, and at x itself where f is not defined there. No derivative is taken."""
    torch.manual_seed(0)
    model, x = OneFunction(f).double(), torch.rand(6, 5, dtype=torch.float64)
    with torch.no_grad():
        model.first.weight.abs_().mul_(0.8)
        model.first.bias.fill_(0.1)
        z = model.first(x)
        assert 0 < z.min() and 0.67 < z.max() < 1  # logit has no value at 1.5 times the largest
        far, near = (torch.where(f(y).isfinite(), y, z) for y in (1.5 * z, z / 1.5))
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight
        expected = s * (f(far) - f(near)) / (far - near)
    found = feedback(model, LFP.with_options(epsilon=0.0), x, engine)["first.bias"]
    torch.testing.assert_close(found, expected.sum(0))


def test_the_secant_is_for_functions_that_bend():
    """Not for relu and its like, whose slope f(x) / x is."""
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64)
    for function, bends in {
        F.gelu: True,
        torch.sigmoid: True,
        lambda x: x * torch.sigmoid(x): True,
        F.relu6: True,
        F.leaky_relu: False,
        torch.abs: False,
        lambda x: x * (x > 0): False,
        lambda x: torch.sqrt(x * x + 1): True,
    }.items():
        model = OneFunction(function).double()
        without = replace(LFP, structure=partial(learning_structure, secant=0.0))
        found, other = feedback(model, LFP, x)["first.weight"], feedback(model, without, x)["first.weight"]
        assert torch.equal(found, other) != bends
    positive = OneFunction(lambda x: torch.sqrt(x)).double()
    with torch.no_grad():
        positive.first.weight.mul_(0.01)
        positive.first.bias.fill_(0.1)
    assert all(value.isfinite().all() for value in feedback(positive, LFP, x).values())


@pytest.mark.parametrize("engine", ["live", "static"])
def test_a_rule_of_ones_own_stays(engine):
    """What a composite's handlers say of an activation comes before secants and centring."""
    torch.manual_seed(0)
    own = {torch.ops.aten.gelu.default: lambda call, s, x, approximate="none": [s * 3]}
    model, x = OneFunction(F.gelu).double(), torch.randn(6, 5, dtype=torch.float64)
    found = feedback(model, PLAIN.with_options(handlers=own, epsilon=0.0), x, engine)["first.weight"]
    with torch.no_grad():
        s = (torch.softmax(model(x), -1) - F.one_hot(torch.arange(6) % 3, 3)) / 6 @ model.second.weight * 3
        w = model.first.weight
        expected = s.T @ x * torch.maximum(w.abs(), 0.1 * w.square().mean().sqrt())
    torch.testing.assert_close(found, expected)


def test_the_secant_of_low_precision():
    """Where x + h is x in bfloat16."""
    model = OneFunction(F.gelu).bfloat16()
    with torch.no_grad():
        model.first.weight.fill_(100.0)
    x = torch.ones(3, 5, dtype=torch.bfloat16)
    assert feedback(model, LFP, x)["first.weight"].any()


@pytest.mark.parametrize("engine", ["live", "static"])
def test_a_floor_relative_to_the_parameter(engine):
    torch.manual_seed(0)
    model, x = OneFunction(torch.relu).double(), torch.randn(6, 5, dtype=torch.float64)
    true = gradients(model, x)
    found = feedback(model, PLAIN.with_options(epsilon=0.0, floor="0.3 rms"), x, engine)
    for name, p in model.named_parameters():
        w = p.detach()
        size = torch.maximum(w.abs(), 0.3 * w.square().mean().sqrt()) if w.dim() > 1 else 1.0
        torch.testing.assert_close(found[name], true[name] * size)
    same(feedback(model, LFP.with_options(floor="rms"), x), feedback(model, LFP.with_options(floor="1 rms"), x))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("size", [0.05, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.05, "0.3 rms"])
def test_a_matrix_in_units_of_its_size(floor, size, zero, engine):
    """Over what torch's layers start with, or over its own size if that is less; not so vectors and zero matrices."""
    torch.manual_seed(0)
    model, x = OneFunction(torch.relu).double(), torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        model.first.weight.normal_().mul_(size)
        model.second.weight.mul_(0.0 if zero else size)  # of zeros no signal goes on to the first
        model.second.bias.fill_(1.0)
        units = {}
        for name in ("first", "second"):
            w = model.get_parameter(f"{name}.weight")
            rms = w.abs().clamp_min(floor if floor == 0.05 else 0.0).square().mean().sqrt().item()
            units[f"{name}.weight"] = (3 * w.shape[1]) ** -0.5, rms
    without = feedback(model, PLAIN.with_options(floor=floor), x, engine)
    for options, share in (({}, 1 / 3), ({"unit": "start"}, 1.0)):
        found = feedback(model, LFP.with_options(floor=floor, **options), x, engine)
        over = {name: min(share * start, rms) or 1.0 for name, (start, rms) in units.items()}
        same(found, {n: g / over.get(n, 1) for n, g in without.items()})
        assert zero or all(g.any() for g in found.values())


def test_biases_of_zero_move():
    model = OneFunction(torch.relu).double()
    nn.init.zeros_(model.first.bias)
    x = torch.randn(6, 5, dtype=torch.float64)
    assert feedback(model, LFP, x)["first.bias"].any()
    assert not feedback(model, "lfp-epsilon", x)["first.bias"].any()


@pytest.mark.parametrize("engine", ["live", "static"])
def test_biases_of_several_dimensions_move(engine):
    """Those of experts, say, or position embeddings: what is only added takes the plain signal."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bias = nn.Linear(5, 12), nn.Parameter(torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x).view(-1, 4, 3) + self.bias).sum(1)

    torch.manual_seed(0)
    model, x = Experts().double(), torch.randn(6, 5, dtype=torch.float64)
    plain = LFP.with_options(epsilon=0.0, floor=0.0)
    torch.testing.assert_close(feedback(model, plain, x, engine)["bias"], gradients(model, x)["bias"])
    assert not feedback(model, "lfp-epsilon", x, engine)["bias"].any()
    with torch.no_grad():
        model.bias[0, 0] = 1.0
    torch.testing.assert_close(feedback(model, plain, x, engine)["bias"], gradients(model, x)["bias"])


def test_it_pickles():
    composite = pickle.loads(pickle.dumps(replace(LFP, structure=partial(learning_structure, secant=0.3))))
    assert composite.structure.keywords == {"secant": 0.3}
    assert pickle.loads(pickle.dumps(LFP)) == LFP
