"""Reward is conserved at every unit of whole models, up to declared leaks (float64, 1e-12), with epsilon 0.

Declared leaks: what a bias or another constant adds, which is the signal times the unit's output at zero active
input; an activation's entries at x = 0. Normalisations, softmax and attention claim none (`Family.conserves`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo import ZOO, build
from lfpgraph.models_zoo.tiny import build_tiny
from lfpgraph.rules.signs import is_nonnegative
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lfpgraph.composites.composite import get_composite
from lfpgraph.engine.call import Call
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.engine.signals import Sum, reward_of
from lfpgraph.engine.units import Unit
from lfpgraph.graph.graph import is_float
from lfpgraph.registry import find_rule
from lfpgraph.tracing.tracer import trace


def _leak(call: Call, s: Tensor) -> Tensor:
    """What the unit gives to constants and biases: its signal times its output without any active input."""
    zeroed = {i for i, active in enumerate(call.active) if active}
    values = iter([torch.zeros_like(x) if i in zeroed else x for i, x in enumerate(call.inputs)])
    node, tensors = call.unit.node, set(call.unit.inputs)
    flat = list(values)
    position = iter(range(len(flat)))

    def lookup(source: Any) -> Any:
        return flat[next(position)] if source in tensors else source

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lookup)
    if any(isinstance(leaf, torch.fx.Node) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
        return torch.zeros((), dtype=s.dtype)
    out = node.target(*args, **kwargs)
    return _reward(out, s).sum() if isinstance(out, Tensor) else torch.zeros((), dtype=s.dtype)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "vgg", "vgg-bn", "resnet18", "lstm", "step-cnn", "bert", "llama", "t5"]
)
def test_every_unit_conserves(name: str) -> None:
    model, batch = build_tiny(name)
    args, kwargs = ((batch["input"],), {}) if "input" in batch else ((), batch)
    checked = units_that_conserve(model, args, kwargs)
    assert len(checked) >= 5 and len(set(checked)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_unit_of_the_zoo_conserves(name: str) -> None:
    torch.manual_seed(0)
    assert units_that_conserve(*build(name, "tiny"))


def _reward(value: Tensor, s: Tensor) -> Tensor:
    """`value * s`, of complex numbers Re(conj(value) * s); none where no signal is: masks hold infinities."""
    reward = (value.conj() * s).real if value.is_complex() or s.is_complex() else value * s
    return torch.where(s == 0, 0.0, reward)


def units_that_conserve(model: nn.Module, args: Any, kwargs: Any) -> list[str]:
    """Check every unit of a model in float64; the families of those that were checked."""
    model = model.double().eval()
    args, kwargs = pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, (args, kwargs)
    )
    graph = trace(model, args, kwargs, dynamic=False, fallback="retrace")
    pairs = list(zip(graph.placeholder_nodes, graph.placeholders))
    wanted = {n for n, p in pairs if p.kind == "parameter" or (p.kind == "input" and is_float(n.meta["val"]))}
    plan = make_plan(graph, get_composite("lfp-0"), wanted)
    checked: list[str] = []

    def observe(unit: Unit, call: Call, s: Any, answers: list[Any]) -> None:
        whole = all(wanted for active, wanted in zip(unit.active, unit.wanted) if active)
        if unit.origin not in ("rule", "region") or not unit.family.conserves or not isinstance(s, Tensor) or not whole:
            return
        received = _reward(call.output, s).sum()
        given = sum(
            _reward(x, g).sum() for x, g, active in zip(call.inputs, answers, unit.active) if active and g is not None
        )
        leak: Any = 0.0
        if unit.family.name == "activation":
            leak = _reward(call.output, s)[(call.inputs[0] == 0).expand_as(call.output)].sum()
        elif unit.family.name != "quotient" and not unit.is_region:
            leak = _leak(call, s)
        scale = _reward(call.output, s).abs().sum() + 1e-300
        # transformers' Llama norm computes in float32 whatever comes in.
        wide = all(t.dtype == torch.float64 for t in (s, call.output, *call.inputs) if is_float(t))
        assert abs(received - given - leak) <= (1e-12 if wide else 1e-5) * scale, f"{unit.node} {unit.node.target}"
        checked.append(unit.family.name)

    with torch.no_grad():
        _, calls, env = run_forward(plan, graph.values_of_call(model, args, kwargs))
        node = next(n for n in graph.user_output_nodes if n.meta["val"].dim() > 0)
        run_backward(plan, calls, env, {node: torch.randn_like(env[node])}, observe=observe)
    return checked


class Multiple(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.factor


@pytest.mark.parametrize("factor", [2.0, -2.0])
def test_a_negative_multiple_may_be_negative(factor: float) -> None:
    """Rules are half as long where no input is negative; they must see where one may be."""
    graph = trace(Multiple(factor), (torch.ones(2, 3),))
    assert is_nonnegative(graph.output_nodes[-1]) is (factor > 0)


@pytest.mark.parametrize("other", [None, 0.25])
@pytest.mark.parametrize("own", [0.0, 0.125])
def test_signals_of_both_forms_make_one_reward(own: float, other: float | None) -> None:
    """What arrives raw, stabilized, and stabilized with another epsilon is one signal of the same reward."""
    torch.manual_seed(0)
    z, *given = torch.randn(4, 6, dtype=torch.float64).unbind(0)
    found, unit = Sum(), SimpleNamespace(epsilon=own, option_epsilon=own, rectified=None)
    for s, form in zip(given, (None, 0.5, other)):
        found.add(s, form, z)
    signal, form = found.settle(z, unit)
    torch.testing.assert_close(
        reward_of(signal, z, form), sum(reward_of(s, z, f) for s, f in zip(given, (None, 0.5, other)))
    )


def test_signals_at_several_results_come_in_one_form() -> None:
    """The plain one of a result beside a stabilized one of another is stabilized as well."""
    torch.manual_seed(0)
    values, signals = torch.randn(2, 2, 6, dtype=torch.float64).unbind(0)
    found, unit = Sum(), SimpleNamespace(epsilon=0.0, option_epsilon=0.25, rectified=None)
    for i, form in enumerate((None, 0.25)):
        item = Sum()
        item.add(signals[i], form)
        found.add_item(i, item)
    settled, form = found.settle(values, unit)
    for i, own in enumerate((None, 0.25)):
        torch.testing.assert_close(reward_of(settled[i], values[i], form), reward_of(signals[i], values[i], own))


def test_a_dirichlet_sample_hands_back_as_torch_does() -> None:
    """torch has the derivative outside its table of them."""
    torch.manual_seed(0)
    concentration = torch.rand(3, 4, dtype=torch.float64) + 0.5
    z, s = torch._sample_dirichlet(concentration), torch.randn(3, 4, dtype=torch.float64)
    expected = torch.distributions.dirichlet._Dirichlet_backward(z, concentration, s)
    found = find_rule(torch.ops.aten._sample_dirichlet.default).handler(SimpleNamespace(output=z), s, concentration)
    torch.testing.assert_close(found[0], expected)
