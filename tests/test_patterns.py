"""The joint graph of patterns is the joint graph of one trace: the same feedback to the last bit, for a few traces only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.composites.composite import get_composite
from lfpgraph.engine import patterns, program
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.program import Program, make_program
from lfpgraph.engine.static import functional_graph
from lfpgraph.graph.graph import OpGraph
from lfpgraph.passes.recompute import Share
from lfpgraph.tracing.tracer import trace


class Block(nn.Module):
    """Attention with a gated branch, dropout, an activation written out, two users of one norm, and items of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (t.view(*x.shape[:2], 2, 4).transpose(1, 2) for t in self.qkv(h).split(8, -1))
        x = x + self.drop(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        gate, up = self.up(h).chunk(2, -1)
        up = 0.5 * up * (1 + torch.tanh(up + 0.04 * up**3))
        return x + self.down(torch.cat([torch.sigmoid(gate) * up, F.relu(gate)], -1))


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 8), nn.ModuleList(Block() for _ in range(depth))
        self.scale, self.head = nn.Parameter(torch.zeros(8)), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x * (1 + self.scale)), x.mean((1, 2))


SELDOM = pytest.param("lfp-gamma", None, marks=pytest.mark.slow)
COMPOSITES = ["lfp", "lfp-epsilon", "gradient", "lfp-gamma", "feedback-alignment"]


@pytest.fixture(scope="module")
def traced() -> tuple[OpGraph, list[Any]]:
    torch.manual_seed(0)
    model, ids = Deep(2).double(), torch.randint(11, (3, 6))
    graph = trace(model, ids)
    return graph, graph.values_of_call(model, (ids,), {})


def made(graph: OpGraph, values: list[Any], composite: str, share: float | None = None) -> Program:
    wanted = {n for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"}
    return make_program(
        make_plan(graph, get_composite(composite), wanted, values=values),
        values,
        share=None if share is None else Share(share),
    )


def feedback(found: Program, values: list[Any]) -> list[Tensor | None]:
    with torch.no_grad():
        torch.manual_seed(1)
        results = found.call_forward(*values)
        signals = [torch.randn_like(results[i]) for i in found.signal_outputs]
        answers: list[Tensor | None] = found.call_feedback([*results[found.n_outputs :], *signals])
    return answers


@pytest.mark.parametrize(
    ("composite", "share"), [*((name, None) for name in COMPOSITES if name != "lfp-gamma"), ("lfp", 0.3), SELDOM]
)
def test_equal_to_one_trace(
    composite: str, share: float | None, traced: tuple[OpGraph, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, values = traced
    monkeypatch.setattr(program, "repeats", lambda _: True)
    by_patterns = feedback(made(graph, values, composite, share), values)
    monkeypatch.setattr(program, "_has_patterns", lambda _: False)
    whole = feedback(made(graph, values, composite, share), values)
    assert any(b is not None for b in whole)
    for a, b in zip(by_patterns, whole, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


def test_blocks_that_repeat_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return functional_graph(*args)

    monkeypatch.setattr(patterns, "functional_graph", counted)
    monkeypatch.setattr(program, "repeats", lambda _: True)
    counts = []
    for depth in (2, 4):
        calls.clear()
        model, ids = Deep(depth), torch.randint(11, (3, 6))
        graph = trace(model, ids)
        made(graph, graph.values_of_call(model, (ids,), {}), "lfp")
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_a_rule_that_looks_at_the_graph_is_traced_for_each_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a rule answers may differ between units that are alike in everything else."""
    monkeypatch.setattr(program, "repeats", lambda _: True)
    looks: list[str] = []

    def rule(call: Any, s: Tensor, *_: Any) -> Any:
        looks.append(call.sources[0].name)
        return call.vjp(s)

    composite = lfpgraph.Composite("looks", lfpgraph.Ruleset(handlers={torch.ops.aten.linear.default: rule}))
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    lfpgraph.wrap(model, composite, engine="static")(torch.randn(3, 4)).sum().backward()
    assert len(set(looks)) == 3


def test_a_rule_may_draw_random_numbers_for_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn when the signal is there, not in the forward pass; some fused attention's own derivative counts as such a rule."""
    monkeypatch.setattr(program, "repeats", lambda _: True)

    def rule(call: Any, s: Tensor, *_: Any) -> Any:
        x, *rest = call.vjp(s)
        return [None if x is None else x * torch.bernoulli(s[:, :1].abs().clamp(0.5, 0.5)), *rest]

    composite = lfpgraph.Composite("drawn", lfpgraph.Ruleset(handlers={torch.ops.aten.linear.default: rule}))
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.randn(40, 4, requires_grad=True)
    lfpgraph.wrap(model, composite, engine="static")(x).sum().backward()
    assert x.grad is not None and 0 < int((x.grad == 0).all(1).sum()) < 40
