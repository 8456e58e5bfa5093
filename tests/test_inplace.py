"""The passes over static graphs: functional, and in place where nothing reads the old value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lfpgraph
from lfpgraph.passes.functional import make_functional
from lfpgraph.passes.inplace import write_in_place
from lfpgraph.wrapping.calls import wrapping_of

aten = torch.ops.aten
X = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)


class _Returns(nn.Module):
    """Returns values that its feedback needs, views of them, and others."""

    def __init__(self, of: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.layer, self.of = nn.Linear(4, 4), of

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.layer(x)
        return self.of(z, torch.sigmoid(z))


def traced(function: Callable[..., list[Tensor]], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def check(function: Callable[..., list[Tensor]], writes: int, *inputs: Tensor) -> None:
    """The pass makes so many writes; results and inputs stay."""
    inputs = inputs or (X,)
    module, copies = traced(function, *inputs), [x.clone() for x in inputs]
    expected = function(*copies)
    assert write_in_place(module.graph) == writes
    module.recompile()
    for found, wanted in zip(module(*inputs), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for x, before in zip(inputs, copies):
        torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_chain_is_written_over() -> None:
    check(lambda x: [(x * 2 + 1).abs() / 3], 3)


def test_second_argument_of_a_sum() -> None:
    check(lambda x: [x + (x * 2)], 1)


def test_not_the_dividend_of_an_input() -> None:
    check(lambda x: [x / (x + 5)], 0)


def test_arguments_and_results_stay() -> None:
    check(lambda x: [x + 1], 0)
    check(lambda x: [y := x + 1, y * 2], 0)
    check(lambda x: [(y := x + 1).view(12), y * 2], 0)


def test_later_readers() -> None:
    check(lambda x: [(y := x + 1) * 2 - y], 1)  # only the difference, over the product


def test_views_of_the_old_value_are_readers() -> None:
    check(lambda x: [(v := (y := x + 1).t(), y * 2)[1] + v.t().exp()], 2)  # the exponential and the sum


def test_expanded_value_is_not_written_to() -> None:
    check(lambda x: [x.sum(0, keepdim=True).expand(3, 4) * 2], 0)


def test_dtype_and_shape_must_stay() -> None:
    check(lambda x: [(x + 1) + x.sum((0, 1))], 1)
    check(lambda x: [(x.sum(0) + 1) + x], 1)  # the sum takes its first step in place, not the broadcast
    check(lambda x: [(x + 1) > 0], 0)


def test_two_writes_on_one_memory() -> None:
    check(lambda x: [(x + 1) * 2, x * 3], 1)
    check(lambda x: [((x + 1).view(12) * 2).view(3, 4) - 1], 2)


@pytest.mark.parametrize(
    ("function", "done"),
    [
        (lambda x: [torch.zeros_like(x).add_(x).mul_(2)], True),
        (lambda x: [torch.zeros_like(x).bernoulli_(0.5) + x], True),
        (lambda x: [(y := x + 1, z := y.mul_(2), y + z)[2]], True),
        (lambda x: [(y := x + 1, y.view(12).mul_(2), y + 0)[2]], False),
    ],
)
def test_functional(function: Callable[..., list[Tensor]], done: bool) -> None:
    module = traced(function, X)
    assert make_functional(module.graph) is done
    if not done:
        return
    module.recompile()
    torch.manual_seed(0)
    expected = function(X.clone())
    torch.manual_seed(0)
    torch.testing.assert_close(module(X), expected)
    assert not any(n.target._schema.is_mutable for n in module.graph.nodes if hasattr(n.target, "_schema"))


@pytest.mark.parametrize(
    ("of", "all_apart"),
    [
        (lambda z, h: [torch.tanh(h) * 2], True),
        (lambda z, h: [h, h * 2], False),
        (lambda z, h: [h.t(), h * 2], False),
        (lambda z, h: [h.view(-1)[2:], z.unsqueeze(0)], False),
    ],
)
def test_saved_values_apart_from_what_is_returned(
    of: Callable[[Tensor, Tensor], list[Tensor]], all_apart: bool
) -> None:
    """What a program takes for memory of its own is; a write to what it returns is noticed without a look at the rest."""
    model = lfpgraph.wrap(_Returns(of), "lfp-epsilon", engine="static")
    x = torch.randn(3, 4)
    model(x)
    program = next(iter(wrapping_of(model).static.programs)).program  # type: ignore[union-attr]
    values = [*model.layer.parameters(), x]
    places = {p.untyped_storage()._cdata for p in values}
    found = program.call_forward(*(v.detach() for v in values))
    outputs, saved = found[: program.n_outputs], found[program.n_outputs :]
    places |= {t.untyped_storage()._cdata for t in outputs}
    shared = [t.untyped_storage()._cdata in places for t in saved]
    assert not any(fresh and not_own for fresh, not_own in zip(program.is_fresh, shared))
    assert not all_apart or program.is_fresh == [not not_own for not_own in shared]
