"""The steps of a recurrent layer as one operation: the numbers are those of the steps one by one."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lfpgraph.rules.loops import LSTM, RECURRENT
from lfpgraph.rules.recurrent_loops import walk_in_loop
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lfpgraph
from lfpgraph.native.compiler import c_compiler
from lfpgraph.native.loops import loop_of_formula, loop_of_graph, place
from lfpgraph.native.products import Product
from lfpgraph.tracing.recurrent import steps_as_one

from .support.opinfo import RECORDED
from .support.recurrent import CELLS, Recurrent, assert_equal, feedback_of


class Begun(nn.Module):
    """The same behind states that are made of what is given, [batch, 3] each."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.model, self.start = model, nn.Linear(3, 4).double()

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        states = [self.start(y).tanh()[None] for y in given]
        return self.model(x, tuple(states) if len(states) > 1 else states[0])


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
@pytest.mark.parametrize("cell", CELLS)
def test_both_engines_equal_the_steps_one_by_one(cell: str, composite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(cell).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    engines = ("static", "live") if composite == "lfp" else ("live",)  # tracing takes long
    found = [feedback_of(model, [x], composite, engine) for engine in engines]
    for module in ("lfpgraph.live.engine", "lfpgraph.wrapping.static_engine"):
        monkeypatch.setattr(f"{module}.takes_steps_as_one", lambda composite: False)
    one_by_one = feedback_of(model, [x], composite, "live")
    for feedback in found:
        assert_equal(feedback, one_by_one)


@pytest.mark.parametrize("block", [1, 1 << 17])
@pytest.mark.parametrize(
    ("cell", "options"), [("lstm", {"bidirectional": True}), ("gru", {"num_layers": 2, "bias": False})]
)
def test_gradient_of_the_operation_is_autograds(
    cell: str, options: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all steps are worked on at once or each by itself."""
    monkeypatch.setattr("lfpgraph.rules.recurrent._BLOCK", block)
    torch.manual_seed(0)
    model, x = Recurrent(cell, **options).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    plain = _feedback_of_plain(model, x)
    recorded = lfpgraph.get_composite("lfp").override("*", "gradient")
    for engine in ("static", "live"):
        assert_equal(feedback_of(model, [x], recorded, engine), plain)


def _feedback_of_plain(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    return {"input 0": x.grad} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("cell", "composite"),
    [
        ("lstm", "lfp"),
        ("lstm", "lfp-epsilon"),
        ("gru", "lfp-0"),
        ("gru", "lfp-centred"),
        ("tanh", "lfp"),
        ("relu", "lfp"),
    ],
)
def test_a_loop_in_c_equals_torchs_operations(
    cell: str, composite: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All steps in one block, each in one of its own, behind states that are given; products in C, and by torch."""
    torch.manual_seed(0)
    model, x = Recurrent(cell, bias=composite != "lfp-0").double(), torch.randn(2, 4, 3, dtype=torch.float64)
    begun = [torch.randn(2, 3, dtype=torch.float64)] * (1 + (cell == "lstm"))
    model = Begun(model)
    usual = feedback_of(model, [x, *begun], composite, "live")
    monkeypatch.setattr("lfpgraph.rules.recurrent_loops._LOOP", 1)
    monkeypatch.setattr("lfpgraph.engine.recurrent.walk_in_loop", (ran := Mock(wraps=walk_in_loop)))
    monkeypatch.setattr("lfpgraph.native.products._AT_ONCE", 4)  # of two rows at each step
    for block, large, alone in (
        (1, 1 << 22, False),
        (1, 1 << 22, True),
        (1 << 17, 1 << 22, True),
        (3 * 2 * 3, 0, False),
    ):
        monkeypatch.setattr("lfpgraph.rules.recurrent_loops._BLOCK", block)
        monkeypatch.setattr("lfpgraph.rules.recurrent_loops.has_one_thread", lambda alone=alone: alone)
        monkeypatch.setattr("lfpgraph.native.products._LARGE", large)
        with caplog.at_level("INFO", "lfpgraph"):
            assert_equal(feedback_of(model, [x, *begun], composite, "live"), usual)
    assert ran.call_count == 4 and "loop in C" not in caplog.text


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_in_c_are_exact(dtype: torch.dtype) -> None:
    """Near zero, where tanh(x) / x is asked for, and far from it."""
    sizes = torch.logspace(-30, 4, 400, dtype=torch.float64)
    x = torch.cat([sizes, -sizes]).to(dtype)[None, :, None]
    x = torch.cat([x, torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)[None, :, None]], 1)
    for name in ("sigmoid", "tanh", "relu"):
        loop, found = loop_of_formula(lambda x, name=name: [getattr(x, name)()], [1], dtype), torch.empty_like(x)
        assert loop is not None
        loop.on([place(x), place(found)], x.shape[1], 1)(0)
        exact = getattr(x.double(), name)().to(dtype)
        torch.testing.assert_close(
            found,
            exact,
            rtol=4 * torch.finfo(dtype).eps,
            atol=1e-38 if dtype is torch.float32 else 1e-300,
            equal_nan=True,
        )


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
def test_a_loop_keeps_nan_in_the_larger_of_two() -> None:
    x = torch.tensor([[[1.0], [torch.nan], [2.0]]])
    y, found = torch.tensor([[[torch.nan], [1.0], [3.0]]]), torch.empty_like(x)
    traced = make_fx(lambda a, b: [torch.maximum(a, b)], tracing_mode="fake")(x[0], y[0])
    loop = loop_of_graph(traced.graph, 1, torch.float32)
    assert loop is not None
    loop.on([place(x), place(y), place(found)], 3, 1)(0)
    assert torch.equal(found.isnan(), torch.maximum(x, y).isnan()) and found[0, 2] == 3


def test_a_compiler_that_fails_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("INFO", "lfpgraph"):
        assert loop_of_formula(lambda x: [x.tanh() * x + x], [1], torch.float64) is None
    assert "no-such-compiler" in caplog.text


def test_float32_gets_feedback_too() -> None:
    """torch has a kernel of its own for it, with nothing inside that a rule could be put on."""
    torch.manual_seed(0)
    model, x = Recurrent("lstm"), torch.randn(2, 4, 3)
    wrapped = lfpgraph.wrap(copy.deepcopy(model), "lfp-epsilon", engine="live")
    nn.functional.cross_entropy(wrapped(x), torch.tensor([0, 1])).backward()
    exact = feedback_of(copy.deepcopy(model).double(), [x.double()], "lfp-epsilon", "live")
    for name, parameter in wrapped.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), exact[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("cell", "options"), [("lstm", {}), ("gru", {"num_layers": 2, "dropout": 0.5}), ("tanh", {})])
def test_under_autocast(cell: str, options: Any) -> None:
    """Where torch takes a traced layer apart there is no autocast, and its products are to be cast all the same."""
    torch.manual_seed(0)
    model, x, found = Recurrent(cell, **options).eval(), torch.randn(2, 5, 3), []
    for engine in ("live", "static"):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(feedback_of(model, [x], "lfp", engine))
    for name, one in found[0].items():
        assert (found[1][name] - one).norm() <= 6e-3 * one.norm() + 1e-4, name  # 7e-3 and more without the casts


def test_another_length_is_not_traced_again() -> None:
    model = Recurrent("gru")
    wrapped = lfpgraph.wrap(model, engine="static")
    for length in (5, 3, 9):
        wrapped(torch.randn(2, length, 3)).sum().backward()
    assert lfpgraph.explain_wrap(wrapped).traces == 1


def test_a_state_that_is_given_gets_its_signal() -> None:
    torch.manual_seed(0)
    model = Recurrent("gru").double()
    inputs = [torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64)]
    static, live = (feedback_of(model, inputs, "lfp", engine) for engine in ("static", "live"))
    assert static["input 1"].abs().sum() > 0
    assert_equal(static, live)


class Learned(nn.Module):
    """A layer that starts from a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)
        self.state = nn.ParameterList(torch.randn(1, 1, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, tuple(s.expand(1, x.shape[1], 4) for s in self.state))[1][0][0])


def test_a_learned_state_gets_the_feedback_of_the_steps_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Learned().double(), torch.randn(4, 2, 3, dtype=torch.float64)
    found = feedback_of(model, [x], "lfp", "live")
    monkeypatch.setattr("lfpgraph.live.engine.takes_steps_as_one", lambda composite: False)
    assert_equal(found, feedback_of(model, [x], "lfp", "live"))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivative_of_the_operation(cell: str) -> None:
    torch.manual_seed(0)
    gates = {"lstm": 4, "gru": 3}[cell] * 2
    shapes = [(2, 2, gates), *[(2, 2)] * (2 if cell == "lstm" else 1), (gates, 2), (gates,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    run = LSTM if cell == "lstm" else lambda *given: RECURRENT(*given, cell)
    assert torch.autograd.gradgradcheck(lambda *given: run(*given)[:-1], inputs)


def test_steps_as_one_belongs_to_its_thread_and_block() -> None:
    with steps_as_one():
        pass
    graph = lfpgraph.trace(nn.GRU(3, 4), (torch.randn(3, 2, 3),))
    assert not any("lfpgraph" in str(node.target) for node in graph.operations())


class Coded(nn.Module):
    """Looks codes up by what a recurrent layer and a step say, so autograd stops there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 3), nn.LSTM(3, 4), nn.Linear(4, 2)
        self.register_buffer("codes", torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        steps = (self.first(x) > 0).to(x.dtype)
        return self.last(self.codes[torch.cdist(self.layer(steps)[0], self.codes).argmin(-1)])


def test_what_no_signal_reaches_keeps_none() -> None:
    torch.manual_seed(0)
    model = lfpgraph.wrap(Coded(), RECORDED, engine="live")
    model(torch.randn(4, 2, 3)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["last.weight", "last.bias"]


@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 31, 64, 70])
@pytest.mark.parametrize("rows", [1, 7, 19])
def test_a_product_in_c_is_that_of_torch(rows: int, columns: int, dtype: torch.dtype) -> None:
    loop = loop_of_formula(lambda x: [x.relu()], [1], dtype)
    assert loop is not None
    left, out = torch.randn(3, rows, 5, dtype=dtype), torch.zeros(3, rows, columns + 2, dtype=dtype)
    w, added = torch.randn(columns, 5, dtype=dtype).t(), torch.randn(rows, columns, dtype=dtype)
    x, y = torch.randn(2, 3, rows, 1, dtype=dtype)
    running = loop.on([place(x), place(y)], rows, 1)
    of = Product(w, loop.panel, place(left), place(added), place(out))
    running.through(of, range(2, 0, -1), ahead=True)
    torch.testing.assert_close(out[1:, :, :columns], left[1:] @ w + added)
    assert not out[0].any() and not out[:, :, columns:].any()
