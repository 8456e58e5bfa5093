"""Graphs that need no second trace by torch: writes of layers, composite operations, and loops over recurrent cells.

A loop that a model writes itself is taken apart once, or made one operation for all steps.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.rules.loops import LSTM, RECURRENT
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import lfpgraph
from lfpgraph.tracing.cells import cells_kept_whole
from lfpgraph.tracing.parts import take_apart_all
from lfpgraph.tracing.recurrent import steps_as_one

CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
}


class Loop(nn.Module):
    """Two layers of cells, step by step, with dropout between them; all states of the second, and the last ones, are read."""

    def __init__(self, cell: str, dropout: float = 0.0, feeds_back: bool = False) -> None:
        super().__init__()
        self.first, self.second = CELLS[cell](3, 4), CELLS[cell](4, 4)
        self.dropout, self.head, self.feeds_back = nn.Dropout(dropout), nn.Linear(4, 2), feeds_back

    def forward(self, x: Tensor) -> Tensor:
        lower = upper = None
        found = []
        for t in range(x.shape[1]):
            lower = self.first(x[:, t], lower)
            h = self.dropout(lower[0] if isinstance(lower, tuple) else lower)
            upper = self.second(h + found[-1] if self.feeds_back and found else h, upper)
            found.append(upper[0] if isinstance(upper, tuple) else upper)
        ends = lower if isinstance(lower, tuple) else (lower,)
        return self.head(torch.stack(found, 1).tanh().mean(1) + found[-1]) + sum(e.mean() for e in ends)


def _feedback(model: nn.Module, x: Tensor, composite: str, engine: str) -> tuple[dict[str, Tensor], Any]:
    wrapped = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    nn.functional.cross_entropy(wrapped(x), torch.tensor([0, 1])).backward()
    return {"input": x.grad} | {n: p.grad for n, p in wrapped.named_parameters()}, wrapped


def _operations(model: nn.Module, x: Tensor, as_one: bool) -> list[Any]:
    with steps_as_one(lambda: as_one):
        return [node.target for node in lfpgraph.trace(model, (x,)).operations()]


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9, msg=f"{name} differs")


@pytest.mark.parametrize(
    ("cell", "composite", "dropout"),
    [("lstm", "lfp", 0.5), ("gru", "lfp-epsilon", 0.0), ("tanh", "lfp", 0.0), ("relu", "lfp-epsilon", 0.5)],
)
def test_a_loop_has_the_numbers_of_its_steps(cell: str, composite: str, dropout: float) -> None:
    torch.manual_seed(0)
    model, x = Loop(cell, dropout).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    live, _ = _feedback(model, x, composite, "live")
    rolled, wrapped = _feedback(model, x, composite, "static")
    _assert_equal(rolled, live)
    (plan,) = lfpgraph.wrapping.calls.wrapping_of(wrapped).all_plans()
    assert sum(unit.node.target in (LSTM, RECURRENT) for unit in plan.units) == 2


def test_cells_taken_apart_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in CELLS:
        model, x = Loop(cell, 0.5).eval(), torch.randn(2, 3, 3)
        monkeypatch.undo()
        graph = lfpgraph.trace(model, (x,))
        for module in ("parts", "rewrite", "export"):
            monkeypatch.setattr(f"lfpgraph.tracing.{module}.cells_kept_whole", dict)
        monkeypatch.setattr("lfpgraph.tracing.export.take_apart_all", lambda module: None)
        theirs = lfpgraph.trace(model, (x,))
        assert torch.equal(*(g.module(*g.values_of_call(model, (x,), {}))[0] for g in (graph, theirs))), cell
        assert not {node.target for node in graph.operations()} & cells_kept_whole().keys()


def test_a_loop_is_rolled_up_where_its_inputs_are_there_before() -> None:
    x = torch.randn(2, 5, 3)
    by_steps = _operations(Loop("gru"), x, False)
    assert RECURRENT not in by_steps
    rolled = _operations(Loop("gru"), x, True)
    assert rolled.count(RECURRENT) == 2 and len(rolled) < len(by_steps) / 3
    fed_back = _operations(Loop("gru", feeds_back=True), x, True)
    assert fed_back.count(RECURRENT) == 1  # the second layer reads its own state


class Crossing(nn.Module):
    """Cells that go on from each other, but of two weights by turns, or that take each part of their state from another."""

    def __init__(self, by_turns: bool) -> None:
        super().__init__()
        self.first, self.second, self.by_turns = nn.LSTMCell(3, 4), nn.LSTMCell(3, 4), by_turns

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], 4)
        a, others = (zeros, zeros), [(zeros, zeros)]
        for t in range(4):
            others.append(self.second(x[:, t], others[-1]))
        for t in range(4):
            if self.by_turns:
                a = (self.first if t % 2 else self.second)(x[:, t], a)
            else:
                a = self.first(x[:, t], (a[0], others[t][1]))
        return a[0] + a[1]


@pytest.mark.parametrize("by_turns", [True, False])
def test_cells_that_are_no_loop_stay_cells(by_turns: bool) -> None:
    torch.manual_seed(0)
    model, x = Crossing(by_turns).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    _assert_equal(*(_feedback(model, x, "lfp", engine)[0] for engine in ("static", "live")))


class Writes(nn.Module):
    """Writes into activations and buffers; one norm runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.norm(x).relu_())
        h += x
        self.seen.mul_(0.5).add_(h.detach().mean((0, 2, 3)))
        with torch.no_grad():
            scale = h.std()
        return nn.functional.silu(
            self.last(torch.cosine_similarity(h, x, -1).mean(-1)) * scale + self.seen[:2], inplace=True
        )


class WritesToView(nn.Module):
    """Writes to what a view is of, and reads the view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        h = x * 2.0
        flat = h.flatten()
        h.mul_(3.0)
        return flat.exp() * self.calls


@pytest.mark.parametrize(
    ("make", "is_ours"),
    [
        (Writes, True),
        (lambda: Writes().eval(), True),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(inplace=True)), True),
        (lambda: nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Hardtanh(inplace=True)), False),
        (WritesToView, True),
    ],
    ids=["train", "eval", "no statistics", "instance norm", "view"],
)
def test_writes_become_operations_as_torch_has_them(make: Any, is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, 3, 4, 3)
    seen: list[bool] = []
    monkeypatch.setattr(
        "lfpgraph.tracing.export.take_apart_all",
        lambda module: [found := take_apart_all(module), seen.append(found is not None)][0],
    )
    ours = lfpgraph.trace(model, (x,))
    assert seen == [is_ours]
    monkeypatch.setattr("lfpgraph.tracing.export.take_apart_all", lambda module: None)
    theirs = lfpgraph.trace(model, (x,))
    assert ours.mutations == theirs.mutations
    found, expected = (g.module(*g.values_of_call(model, (x,), {})) for g in (ours, theirs))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


class Placed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(3)
        return torch.ops.aten._unsafe_masked_index(x, places > 0, [places], 0.0) * 2


def test_parts_may_change_the_lists_that_they_are_given() -> None:
    """As torch's own of a lookup under a mask do, for which fx's lists are too strict."""
    x = torch.randn(4, requires_grad=True)
    model = nn.Sequential(nn.Linear(4, 4), Placed())
    lfpgraph.wrap(model, "gradient", engine="static")(x).sum().backward()
    expected = torch.autograd.grad(model[1](model[0](y := x.detach().requires_grad_())).sum(), y)[0]
    torch.testing.assert_close(x.grad, expected)


def test_a_weight_of_several_tensors_is_left_to_torch() -> None:
    """As a quantised one, which only torch's way takes apart into tensors that a program can be given."""
    graph = torch.fx.Graph()
    weight = graph.placeholder("weight")
    weight.meta["val"] = TwoTensor(torch.ones(2, 2), torch.ones(2, 2))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (weight, weight)),))
    assert take_apart_all(torch.fx.GraphModule(nn.Module(), graph)) is None
    weight.meta["val"] = torch.ones(2, 2)
    assert take_apart_all(torch.fx.GraphModule(nn.Module(), graph)) == []
