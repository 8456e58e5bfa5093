"""Attention masks that follow from positions: taken away where they say nothing, or that attention is causal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.graph.masks.positions import Holds, Known, what_is_known

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class Attention(nn.Module):
    """Attention of x to itself, under a mask made of the number of tokens."""

    def __init__(self, mask: Callable[[Tensor], Tensor | None], **options: Any) -> None:
        super().__init__()
        self.mask, self.options = mask, options
        self.project = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        out: Tensor = F.scaled_dot_product_attention(q, k, v, self.mask(x), **self.options)
        return out


def _rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[:, None]


def _columns(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None, :]


def _packed(x: Tensor) -> Tensor:
    """As transformers asks whether positions begin anew within a row."""
    positions = torch.arange(x.shape[1]).unsqueeze(0).expand(x.shape[0], -1)
    before = torch.cat([positions[:, :1] - 1, positions], -1)
    parts = (torch.diff(before, dim=-1) != 1).cumsum(-1)
    batch = torch.arange(x.shape[0])[:, None, None]
    return (parts[batch, _rows(x)[None]] == parts[batch, _columns(x)[None]])[:, None]


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "ones": lambda x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool),
    "positions from zero": lambda x: ((_rows(x) + 0 >= 0) & (_columns(x) >= 0)).expand(x.shape[0], 1, -1, -1),
    "one row": lambda x: (_columns(x) > -1)[None, None],
    "one part": _packed,
}
CAUSAL: dict[str, Callable[[Tensor], Tensor]] = {
    "columns up to the row": lambda x: _columns(x) <= _rows(x),
    "rows from the column": lambda x: (_rows(x) > _columns(x) - 1) & torch.ones((), dtype=torch.bool),
    "row - column": lambda x: (_rows(x) - _columns(x) >= 0)[None].expand(x.shape[0], -1, -1).unsqueeze(1),
    "causal within one part": lambda x: _packed(x) & (_columns(x) <= _rows(x)),
}
NEEDED: dict[str, Callable[[Tensor], Tensor]] = {
    "window": lambda x: (_columns(x) <= _rows(x)) & (_columns(x) > _rows(x) - 100),
    "one further": lambda x: _columns(x) <= _rows(x) + 1,
    "one less": lambda x: _columns(x) < _rows(x) + (_rows(x) == 0),
    "columns from the row": lambda x: _columns(x) >= _rows(x),
    "every second": lambda x: _columns(x) * 2 <= _rows(x) * 2,
    "first only": lambda x: (_columns(x) == 0)[None, None].expand(-1, -1, x.shape[1], -1),
    "read off the values": lambda x: (x[:, :, 0] > -10)[:, None, None],
    "numbers": lambda x: torch.zeros(x.shape[1], x.shape[1]),
}


def _attention(graph: lfpgraph.OpGraph) -> tuple[Any, ...]:
    (node,) = (n for n in graph.graph.nodes if n.target is ATTENTION)
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask, len(node.args) > 5 and node.args[5]


@pytest.mark.parametrize("name", [*NOTHING, *CAUSAL, *NEEDED])
def test_a_mask_goes_where_positions_decide(name: str) -> None:
    model = Attention((NOTHING | CAUSAL | NEEDED)[name]).double()
    graph = lfpgraph.trace(model, torch.randn(3, 5, 4, dtype=torch.float64))
    mask, causal = _attention(graph)
    assert (mask is None) == (name not in NEEDED)
    assert causal == (name in CAUSAL)
    if graph.dynamic and name not in NEEDED:  # at another size, beyond every number in a mask
        x = torch.randn(4, 150, 4, dtype=torch.float64)
        expected = model(x)
        assert torch.allclose(lfpgraph.wrap(model, "gradient", engine="static")(x), expected, rtol=1e-12, atol=1e-14)


def test_dropout_and_scale_stay() -> None:
    model = Attention(NOTHING["ones"], dropout_p=0.5, scale=0.3)
    (node,) = (
        n for n in lfpgraph.trace(model, torch.randn(3, 5, 4), compare=False).graph.nodes if n.target is ATTENTION
    )
    assert node.args[3:] == (None, 0.5, False) and node.kwargs["scale"] == 0.3


def test_causal_needs_as_many_rows_as_columns() -> None:
    class Cross(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                x, y, y, torch.arange(y.shape[1]) <= torch.arange(x.shape[1])[:, None]
            )

    mask, causal = _attention(lfpgraph.trace(Cross(), (torch.randn(2, 3, 4), torch.randn(2, 6, 4)), dynamic=False))
    assert mask is not None and not causal


class _Compare(fx.Interpreter):
    """Runs a graph, and compares each value with what is known of it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.known: dict[fx.Node, Known] = {}
        for node in module.graph.nodes:
            if (found := what_is_known(node, self.known)) is not None:
                self.known[node] = found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.known:
            known = self.known[n]
            integers = known.integers if isinstance(known, Holds) else known
            expected = torch.tensor(integers.start)
            for axis, step in enumerate(reversed(integers.steps)):
                if step:
                    expected = expected + step * torch.arange(value.shape[-1 - axis]).reshape(-1, *[1] * axis)
            assert torch.equal((expected >= 0 if isinstance(known, Holds) else expected).expand(value.shape), value), n
        return value


def test_what_is_known_is_so() -> None:
    def values(x: Tensor) -> Tensor:
        rows, columns = torch.arange(x.shape[1])[:, None], torch.arange(2, 2 + 3 * x.shape[1], 3)
        grid = (rows * 1 + columns - 4).unsqueeze(1)
        found = [grid[1:, 0, ::2], grid[:, :, 2], grid.expand(-1, 3, -1)[..., 1:], torch.cat([rows - x.shape[1], rows])]
        found += [
            torch.cat([rows[:1] - 1, rows]),
            torch.cat([columns[1:2], columns[2:]]),
            columns[rows],
            columns[1:][rows[:4]],
        ]
        found += [grid >= 3, grid < 200, grid == grid, (grid != grid).cumsum(0), (rows > -1) & (columns < 0)]
        found += [torch.arange(1)[None] + rows, torch.full((2,), 7) - rows[:2, 0], (rows[1:] - rows[:-1]) == 1]
        return torch.stack([f.double().sum() for f in found]).sum() * x

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return values(x)

    exported = torch.export.export(Model(), (torch.randn(2, 9),)).run_decompositions({}).module()
    compare = _Compare(exported)  # type: ignore[arg-type]
    compare.run(torch.randn(2, 9))
    assert len(compare.known) >= 25
