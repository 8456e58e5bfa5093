"""LRP's rules for layers against a dense reference that writes every message z_ij out (float64, relative 1e-9)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lfpgraph.rules.lrp import products as lrp
from torch import Tensor, fx, nn

import lfpgraph
from lfpgraph import Composite, OpGraph
from lfpgraph.composites.lrp import CONVOLUTIONS, DENSE, deep_taylor, epsilon_gamma_box, layer_composite
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.errors import RuleError

from .support.helpers import relative

STABILIZER = 1e-6


def stable(z: Tensor) -> Tensor:
    return z + STABILIZER * torch.where(z < 0, -1.0, 1.0)


# Each reference gets x [n, i], the layer as a matrix w [i, o], b [o], r [n, o]; it returns the messages from output j to
# input i as a share of r_j, [n, i, o]. What the bias takes is left out.


def _messages(x: Tensor, w: Tensor) -> Tensor:
    return x[:, :, None] * w


def _epsilon(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = _messages(x, w)
    return z / stable(z.sum(1) + b)[:, None]


def _alpha_beta(alpha: float, beta: float) -> Callable[..., Tensor]:
    def shares(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = _messages(x, w)
        plus, minus = z.clamp(min=0), z.clamp(max=0)
        share = alpha * plus / stable(plus.sum(1) + b.clamp(min=0))[:, None]
        return share - beta * minus / stable(minus.sum(1) + b.clamp(max=0))[:, None]

    return shares


def _gamma(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = _messages(x, w)
    out = z.sum(1) + b
    plus, minus = z + 0.25 * z.clamp(min=0), z + 0.25 * z.clamp(max=0)
    for_plus = plus / stable(plus.sum(1) + b + 0.25 * b.clamp(min=0))[:, None]
    for_minus = minus / stable(minus.sum(1) + b + 0.25 * b.clamp(max=0))[:, None]
    return torch.where((out > 0)[:, None], for_plus, torch.where((out < 0)[:, None], for_minus, 0.0))


def _w_square(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return ((w * w) / stable((w * w).sum(0) + b * b)).expand(len(x), *w.shape)


def _flat(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    reaches = (w != 0).to(w.dtype)  # a convolution's matrix is zero where the kernel does not reach
    return (reaches / stable(reaches.sum(0))).expand(len(x), *w.shape)


def _box(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = _messages(x, w) + 3.0 * w.clamp(min=0) - 3.0 * w.clamp(max=0)
    return z / stable(z.sum(1))[:, None]


RULES: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "epsilon": (lrp.epsilon_rule, _epsilon),
    "z-plus": (lrp.ZPlus(), _alpha_beta(1, 0)),
    "alpha2-beta1": (lrp.AlphaBeta(), _alpha_beta(2, 1)),
    "gamma": (lrp.Gamma(), _gamma),
    "w-square": (lrp.WSquare(), _w_square),
    "flat": (lrp.Flat(), _flat),
    "box": (lrp.Box(), _box),
}


class Affine(nn.Module):
    """x @ w + b with operators of which one is traced as mm, addmm or bmm."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        if self.how == "einsum":
            return torch.einsum("ni,io->no", x, self.weight)
        if self.how == "bmm":
            return torch.bmm(x[:, None], self.weight.expand(len(x), 6, 4))[:, 0]
        return x @ self.weight


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear-no-bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "linear-3d": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten()), (2, 3)),
    "matmul": (lambda: Affine("matmul"), (6,)),
    "addmm": (lambda: Affine("addmm"), (6,)),
    "einsum": (lambda: Affine("einsum"), (6,)),
    "bmm": (lambda: Affine("bmm"), (6,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 4, 3, groups=2, bias=False), (4, 4, 4)),
    "conv2d-same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv-transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 3, 3)),
}


def _dense(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A layer as a matrix [i, o] and a bias [o]."""
    size = math.prod(shape)
    with torch.no_grad():
        b = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        w = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1) - b
    return torch.where(w.abs() < 1e-12, 0.0, w), b


def _walk(graph: OpGraph, model: nn.Module, x: Tensor, reward: Tensor, composite: Composite) -> Tensor:
    """The reward of x, given the reward of the graph's output; one trace serves many composites."""
    node = graph.placeholder_nodes[[p.kind for p in graph.placeholders].index("input")]
    plan = make_plan(graph, composite, {node})
    state = dict(model.named_parameters())
    values = [x if p.kind == "input" else state[p.target].detach() for p in graph.placeholders]
    with torch.no_grad():
        outputs, calls, env = run_forward(plan, values)
        record: dict[fx.Node, Any] = {node: None}
        signal = reward / stable(outputs[0])
        run_backward(plan, calls, env, {graph.user_output_nodes[0]: signal}, stabilized=STABILIZER, record=record)
    return record[node]


@functools.cache
def _traced(layer: str, positive: bool) -> tuple[OpGraph, nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[layer]
    module = build().double()
    model = nn.Sequential(nn.ReLU(), module) if positive else module
    x = torch.randn(3, *shape, dtype=torch.float64)
    return lfpgraph.trace(model, x, dynamic=False), model, module, x


CASES = [(name, False) for name in LAYERS] + [("linear", True), ("conv2d", True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("layer", "positive"), CASES, ids=lambda v: {True: "positive", False: "mixed"}.get(v, v))
def test_equals_dense_reference(layer: str, positive: bool, rule: str) -> None:
    graph, model, module, x = _traced(layer, positive)
    shape = LAYERS[layer][1]
    handler, shares = RULES[rule]
    entering = x.clamp(min=0) if positive else x
    w, b = _dense(module, shape)
    out = module(entering).flatten(1)
    reward = torch.randn_like(out)
    expected = torch.einsum("nio,no->ni", shares(entering.flatten(1), w, b), reward).view(x.shape)
    composite = layer_composite("test", convolution=handler, dense=handler)
    found = _walk(graph, model, x, reward.view(module(entering).shape).detach(), composite)
    if positive:  # what has arrived at a relu's zeros stays there
        expected = torch.where(x > 0, expected, 0.0)
    assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("rule", [r for r in RULES if r != "box"])
def test_feedback_of_weights_is_the_sum_of_their_messages(rule: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    handler, shares = RULES[rule]
    x, reward = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    w, b = layer.weight.detach().T, layer.bias.detach()
    per_weight = torch.einsum("nio,no->io", shares(x, w, b), reward)
    composite = layer_composite("test", dense=handler)
    found = lfpgraph.feedback(layer, x, reward=reward, composite=composite)["weight"].T
    # LFP eq. 6: abs(w) times the reward per unit of w
    assert relative(found, per_weight * w.sign()) < 1e-4


@pytest.mark.parametrize(
    "name", ["gamma", "lfp-gamma", "z-plus", "alpha2-beta1", "w-square", "flat", "epsilon", "lrp-0"]
)
def test_layers_without_bias_conserve(name: str) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 5, bias=False),
        nn.Flatten(),
        nn.Linear(64, 16, bias=False),
        nn.Linear(16, 3, bias=False),
    ]
    model = nn.Sequential(*layers).double()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    found = lfpgraph.feedback(model, x, reward=torch.ones(4, 3, dtype=torch.float64), composite=name)["input_0"]
    share = found.sum((1, 2, 3)) / 3
    # A sum that is divided by loses 1e-6 of its size to the stabilizer; a small sum loses more.
    assert (share - 1).abs().max() < 1e-3, share


def test_attention_scores_keep_their_rule() -> None:
    """A product of two activations is no layer: gamma and the others leave it alone."""

    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 4, bias=False).double(), Scores())
    reward = torch.randn(2, 3, 3, dtype=torch.float64)
    by_gamma = lfpgraph.feedback(model, x, reward=reward, composite=layer_composite("a", dense=lrp.Gamma(gamma=0.0)))
    by_epsilon = lfpgraph.feedback(model, x, reward=reward, composite=layer_composite("b"))
    torch.testing.assert_close(by_gamma["input_0"], by_epsilon["input_0"], rtol=1e-5, atol=1e-5)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def _weights(composite: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 6, dtype=torch.float64)
    return lfpgraph.feedback(_net(), x, reward=lambda o: o, composite=composite)


def test_rules_by_depth_equal_rules_by_name() -> None:
    epsilon = lfpgraph.get_composite("epsilon")
    by_depth = epsilon.at_depth(0, 1, "flat").at_depth(-1, None, epsilon=0.5)
    by_name = epsilon.override("0", "flat").override("4", epsilon=0.5)
    other = _weights(epsilon)
    for name, value in _weights(by_name).items():
        torch.testing.assert_close(_weights(by_depth)[name], value)
    assert not torch.allclose(_weights(by_depth)["input_0"], other["input_0"])


def test_first_layer_rules_are_for_the_first_layer() -> None:
    plain, box = _weights(layer_composite("a")), _weights(layer_composite("b", first=lrp.Box()))
    torch.testing.assert_close(plain["2.weight"], box["2.weight"])
    assert not torch.allclose(plain["input_0"], box["input_0"])
    everywhere = _weights(epsilon_gamma_box())  # a network without convolutions has the epsilon rule
    torch.testing.assert_close(plain["input_0"], everywhere["input_0"])
    assert not torch.allclose(_weights(deep_taylor())["2.weight"], plain["2.weight"])


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(RuleError, match="alpha - beta must be 1"):
        lrp.AlphaBeta(alpha=1.0, beta=1.0)
    for low, high in ((1.0, -1.0), ((0.0, 0.0), (1.0, 1.0, 1.0)), ((0.0, 2.0), 1.0)):
        with pytest.raises(RuleError, match="low < high"):
            lrp.Box(low=low, high=high)  # type: ignore[arg-type]
    assert lrp.Box(low=torch.zeros(2), high=[1, 2]) == lrp.Box(low=(0.0, 0.0), high=(1.0, 2.0))  # type: ignore[arg-type]
    for gamma in (-1.0, float("inf"), "x"):
        with pytest.raises(RuleError, match="gamma must be a number"):
            lrp.Gamma(gamma=gamma)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="2 bounds for an input of shape"):
        lfpgraph.feedback(
            nn.Conv2d(3, 2, 1), torch.randn(2, 3, 4, 4), reward=lambda o: o,
            composite=epsilon_gamma_box((0.0, 0.0), (1.0, 1.0)),
        )  # fmt: skip


def test_rules_cover_every_layer_operation() -> None:
    from lfpgraph.registry import find_rule

    for op in (*CONVOLUTIONS, *DENSE):
        entry = find_rule(op)
        assert entry is not None and entry.family.name == "contraction"


@pytest.mark.parametrize("name", ["lfp-gamma", "lfp-z-plus", "lfp-alpha2-beta1", "lfp-w-square", "lfp-flat"])
def test_composites_train_wrapped(name: str) -> None:
    """The traced program gives the walk's feedback."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    expected = lfpgraph.feedback(model, x, reward=lambda o: o.new_ones(o.shape) * o, composite=name)
    lfpgraph.wrap(model, name)
    (-model(x).sum()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative(-parameter.grad, expected[parameter_name]) < 1e-5
