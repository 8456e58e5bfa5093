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

    def watched(graph: fx.Graph, little_memory: bool) -> int:
        count = join_products(graph, little_memory)
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


class OnePicture(nn.Module):
    """Spiking layers that are shown one picture at every step."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        membrane: Tensor | float = 0.0
        total: Tensor | float = 0.0
        for _ in range(5):
            membrane = 0.8 * membrane + self.first(x).flatten(1)
            spike = (membrane > 0.3).to(x.dtype)
            membrane = membrane - spike
            total = total + self.last(spike + torch.tanh(membrane))
        return total, self.first(x), self.first(x)


@pytest.mark.parametrize("memory", ["fast", "min"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_steps_that_read_the_same_compute_it_once(kind: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, counts = torch.ops.aten, []

    def watched(graph: fx.Graph, little_memory: bool) -> int:
        joined = join_products(graph, little_memory)
        layers, back = (ops.addmm.default, ops.convolution.default), (ops.mm.default, ops.convolution_backward.default)
        feedback = [n for n in graph.nodes if n.target in back and getattr(n.args[0], "target", None) is ops.t.default]
        feedback += [n for n in graph.nodes if n.target is ops.convolution_backward.default]
        counts.append((sum(n.target in layers for n in graph.nodes), len(feedback)))
        return joined

    monkeypatch.setattr("lfpgraph.engine.program.join_products", watched)
    torch.manual_seed(0)
    first = nn.Linear(6, 12) if kind == "linear" else nn.Conv1d(2, 4, 2, padding=1, stride=2)
    plain = OnePicture(first).double()
    x = torch.randn(4, 6) if kind == "linear" else torch.randn(4, 2, 5)
    found = []
    for options in ({"engine": "static", "memory": memory}, {"engine": "live"}):
        model = lfpgraph.wrap(copy.deepcopy(plain), "lfp", **options)
        out, once, again = model(x.double())
        out.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
        assert once.data_ptr() != again.data_ptr(), "who writes to one output would change the other"
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    # The first layer once for the steps and for each of the outputs, the last at each step. A product for each weight; the
    # last one's for each step, where the rows of all steps side by side would be memory.
    assert counts == [(1 + 2 + 5, 1 + (1 if memory == "fast" else 5))]


def test_equal_draws_stay_two() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(30, 40)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return torch.dropout(y, 0.5, True) + torch.dropout(y, 0.5, True)

    model, x = lfpgraph.wrap(Twice(), "gradient", engine="static"), torch.randn(3, 30)
    model(x)
    torch.manual_seed(1)
    found = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, Twice()(x))
