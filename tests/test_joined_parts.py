"""What many steps read, each its own part, gets the parts' signals side by side, in one tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import lfpgraph
from lfpgraph.passes.products import join_products

READS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "all": lambda x: [x[:, t] for t in range(6)],
    "backwards": lambda x: [x[:, t] for t in reversed(range(6))],
    "some": lambda x: [x[:, t] for t in (0, 2, 3, 5)],
    "one twice": lambda x: [x[:, t] for t in (0, 1, 1, 2, 4)],
    "two dimensions": lambda x: [*(x[:, t] for t in range(6)), *(x[:, :, j][:, :4] for j in range(4))],
    "of a whole as well": lambda x: [*(x[:, t] for t in range(6)), x.mean(1)],
    "negative places": lambda x: [x[:, t] for t in (-1, -3, -4, -6)],
}


class Steps(nn.Module):
    def __init__(self, reads: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.first, self.last, self.reads = nn.Linear(3, 4), nn.Linear(4, 2), reads

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 6, "the number of steps is a part of the program"
        h = x.new_zeros(x.shape[0], 4)
        for part in self.reads(self.first(x)):
            h = (h * 0.5 + part).tanh()
        out: Tensor = self.last(h)
        return out


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(("composite", "memory"), [("gradient", "fast"), ("lfp", "fast"), ("lfp", "min")])
def test_equals_the_live_walk(composite: str, memory: str, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    def watched(graph: fx.Graph, parts_alone: bool) -> int:
        count = join_products(graph, parts_alone)
        joined.append(sum(node.target is torch.ops.aten.stack.default for node in graph.nodes))
        return count

    monkeypatch.setattr("lfpgraph.engine.program.join_products", watched)
    torch.manual_seed(0)
    plain, x = Steps(READS[reads]).double(), torch.randn(5, 6, 3, dtype=torch.float64)
    found = []
    for options in ({"engine": "static", "memory": memory}, {"engine": "live"}):
        model, given = lfpgraph.wrap(copy.deepcopy(plain), composite, **options), x.clone().requires_grad_()
        model(given).square().sum().backward()
        found.append([given.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert joined == [2 if reads == "two dimensions" else 1]


def test_a_few_parts_of_many_stay_as_they_are() -> None:
    """Four entries of a thousand (a few words' logits, say) are no reason for a thousand tensors side by side."""
    graph = fx.Graph()
    terms = []
    for place in range(4):
        s = graph.placeholder(f"s{place}")
        s.meta["val"] = torch.zeros(2)
        terms.append(graph.call_function(torch.ops.aten.select_backward.default, (s, [2, 1000], 1, place)))
        terms[-1].meta["val"] = torch.zeros(2, 1000)
    total = terms[0]
    for term in terms[1:]:
        total = graph.call_function(torch.ops.aten.add.Tensor, (total, term))
        total.meta["val"] = torch.zeros(2, 1000)
    graph.output([total])
    assert join_products(graph) == 0
