"""Blocks of local learning: what crosses cuts, what is made again, the memory of it all, and the table of the page."""

from __future__ import annotations

import copy

import pytest
import torch
from lfpgraph.models_zoo.digits import cnn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.compared import PAGE, with_table
from benchmarks.local_memory import FILE, SIZES
from benchmarks.local_memory import table as memory_table
from lfpgraph.comparison import compare, forward_only, local
from lfpgraph.comparison.local.block import Block


def test_what_is_made_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large activations are made again behind the backward pass, and written over by the next one: gradients, statistics and
    inputs are as without that."""
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    twin, x, y = copy.deepcopy(model), torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.randint(3, (6,))
    learner, before = local.LocalLosses(model, cross_entropy, x), x.clone()
    assert [bool(block.behind) for block in learner.blocks.blocks] == [True, True, False, False]
    monkeypatch.setattr(Block, "part", lambda *_: False)
    plain = local.LocalLosses(twin, cross_entropy, x)
    assert not any(block.behind for block in plain.blocks.blocks)
    plain.heads.load_state_dict(learner.heads.state_dict())
    for one in (learner, plain):
        one.gradients(x, y)
    assert torch.equal(x, before)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    for mine, other in zip(
        [*model.parameters(), *learner.heads.parameters()], [*twin.parameters(), *plain.heads.parameters()]
    ):
        torch.testing.assert_close(mine.grad, other.grad)


def test_what_is_drawn_is_not_made_again() -> None:
    """A second draw would hand on other activations than those that the block has learnt by."""
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    learner = local.LocalLosses(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3)), cross_entropy, torch.randn(6, 2, 4, 4)
    )
    assert [bool(block.behind) for block in learner.blocks.blocks] == [True, False, False]


def test_memory_of_the_digits_cnn() -> None:
    """All that is alive at once, with weights, heads and AdamW's moments, is at most 0.7 of what backprop needs."""
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    found = compare(cnn, (x, y), (x, y), ("backprop", "local"), steps=1, rates=(1e-3,))
    backprop, ours = (way.kept_bytes + way.peak_bytes for way in found.ways)
    assert ours < 0.7 * backprop


def test_the_table_of_the_page_is_that_of_the_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- compared: memory -->\n") == 1
    assert with_table(page, "memory", memory_table(FILE)) == page
    assert memory_table(FILE).count(" images") == len(SIZES)


def test_floats_that_every_layer_reads_cross_cuts() -> None:
    """A mask of floats is no way around a cut: it depends on no parameter."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x)) * mask
            return x

    model, inputs = Net(), (torch.randn(6, 4), torch.ones(6, 4))
    learner = local.LocalLosses(model, cross_entropy, inputs)
    assert len(learner.blocks) == 4 and not any(block.late for block in learner.blocks.blocks)
    learner.gradients(inputs, torch.arange(6) % 4)
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    assert forward_only.NoProp(model, cross_entropy, inputs).count >= 2
