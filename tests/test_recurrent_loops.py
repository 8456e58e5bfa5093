"""The loops in C of a recurrent layer's steps: what they keep, what they write over, and secants as one formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lfpgraph.rules.loops import ADDED, added_over
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from lfpgraph.native.compiler import c_compiler
from lfpgraph.native.loops import loop_of_graph, place
from lfpgraph.passes.inplace import last_readers

from .support.recurrent import Recurrent, assert_equal, feedback_of


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("cell", "composite", "sums"),
    [("lstm", "lfp", True), ("tanh", "lfp", True), ("gru", "lfp", False), ("lstm", "lfp-epsilon", False)],
)
@pytest.mark.parametrize("least", [1, 1 << 14])
def test_a_static_layer_keeps_the_sum_of_its_products_if_that_is_all_that_is_read(
    cell: str, composite: str, sums: bool, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By loops in C and by torch's operations."""
    monkeypatch.setattr("lfpgraph.rules.recurrent_loops._LOOP", least)
    ran: list[str] = []

    def noted(x: Tensor, state: Any, w: Tensor, b: Any, cell: str) -> list[Tensor]:
        ran.append(cell)
        return added_over(x, state, w, b, cell)

    monkeypatch.setattr("lfpgraph.passes.fastcalls.added_over", noted)
    torch.manual_seed(0)
    model, x = Recurrent(cell).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    assert_equal(feedback_of(model, [x], composite, "static"), feedback_of(model, [x], composite, "live"))
    assert bool(ran) == sums


def test_a_sum_is_not_written_over_what_is_read_later() -> None:
    for read_later in (False, True):
        graph = fx.Graph()
        a, h, w = map(graph.placeholder, "ahw")
        product = graph.call_function(torch.ops.aten.mm.default, (a, w))
        found = [graph.call_function(ADDED, (x, [h], w, None, "tanh")) for x in (a, product)]
        graph.output([*found, product] if read_later else found)
        assert last_readers(graph, ADDED) == ([] if read_later else found[1:])


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(("up", "down"), [(0.5, 0.5), (0.5, 0.25), (-0.25, -0.25)])
@pytest.mark.parametrize("names", [("sigmoid", "sigmoid"), ("tanh", "tanh"), ("tanh", "sigmoid")])
def test_a_secant_in_c_is_that_of_its_function(names: tuple[str, str], up: float, down: float) -> None:
    """As exact as its formula where the difference of two functions loses its digits."""

    def secant(x: Tensor) -> list[Tensor]:
        return [getattr(x + up, names[0])() - getattr(x - down, names[1])()]

    x = torch.linspace(-9, 9, 301)[None, :, None]
    loop, found = loop_of_graph(make_fx(secant)(x[0]).graph, 1, torch.float32), torch.empty_like(x)
    assert loop is not None
    loop.on([place(x), place(found)], x.shape[1], 1)(0)
    is_formula = up == down and len(set(names)) == 1
    rtol, atol = (3e-6, 0.0) if is_formula else (1e-5, 3e-7)
    torch.testing.assert_close(found.double(), secant(x.double())[0], rtol=rtol, atol=atol)
