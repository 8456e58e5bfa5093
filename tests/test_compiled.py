"""wrap(compile=True): the eager program's numbers, from graphs compiled once for all sizes."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import DataDependentError
from lfpgraph.passes.inductor import _laid_out
from lfpgraph.passes.nodes import hint

from .support.helpers import assert_made, assert_same, gradients
from .support.loop_models import cnn, dropping, mlp

SIZES = (5, 17, 64, 2, 1, 3)


def _both(model: nn.Module, twin: nn.Module, inputs: Tensor, composite: str = "lfp-epsilon", **call: Any) -> None:
    """Feedback of the compiled model against the eager one's at every size; one trace for all."""
    twin.load_state_dict(model.state_dict())
    lfpgraph.wrap(model, composite, compile=True)
    lfpgraph.wrap(twin, composite, engine="static")
    for size in SIZES:
        x = inputs[:size]
        assert_same(gradients(model, x, **call), gradients(twin, x, **call), 1e-9, 1e-12)
    assert_made(model, "static")


@pytest.mark.parametrize("build", [mlp, cnn], ids=["mlp", "cnn"])
def test_one_compilation_serves_all_batch_sizes(build: Any) -> None:
    """Batches of 1 to 64, a batch as large as the hidden width among them: the same numbers, no second compilation."""
    torch.manual_seed(0)
    model, twin = build().double(), build().double()
    x = torch.randn(64, 2, 8, 8) if build is cnn else torch.randn(64, 8)
    _both(model, twin, x.double())


def test_layouts_that_were_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs in another memory layout, and gradients that are no tensors of their own, give the same feedback.

    What a weight is scaled by is worked out by a call, as that of a large one is.
    """
    monkeypatch.setattr("lfpgraph.passes.inductor._WORTH_A_CALL", 1)
    torch.manual_seed(0)
    model, twin = cnn().double(), cnn().double()
    twin.load_state_dict(model.state_dict())
    lfpgraph.wrap(model, compile=True)
    lfpgraph.wrap(twin, engine="static")
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    for batch in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3),
        x[:, :, ::2].repeat(1, 1, 2, 1),
    ):
        for m in (model, twin):
            m.zero_grad()
            m(batch).sum().backward()  # the gradient is one number, expanded
        for p, q in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_dropout_masks_are_drawn_once() -> None:
    """What forward drops, feedback drops: a unit's outgoing weights receive nothing where its incoming ones do not.

    On a CPU what is dropped is what the plain model drops.
    """
    torch.manual_seed(0)
    plain = dropping().double().train()
    model = lfpgraph.wrap(copy.deepcopy(plain), compile=True)
    masks, x = [], torch.ones(1, 8, dtype=torch.float64)
    for seed in range(4):
        model.zero_grad()
        torch.manual_seed(seed)
        expected = plain(x)
        torch.manual_seed(seed)
        found = model(x)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        into, out = model[0].weight.grad, model[3].weight.grad  # type: ignore[union-attr]
        masks.append(into.abs().sum(1) > 0)
        assert torch.equal(masks[-1], out.abs().sum(0) > 0)
    assert 0 < masks[0].sum() < 32 and any(not torch.equal(masks[0], mask) for mask in masks)


def test_one_call_values_are_refused() -> None:
    """A model that branches on data cannot be compiled, and the error says what to do."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    model = lfpgraph.wrap(Branching(), compile=True)
    with pytest.raises(DataDependentError, match="Branching.*test_compiled"):
        model(torch.ones(2, 3))


@pytest.mark.slow
def test_transformer_of_any_length(caplog: pytest.LogCaptureFixture) -> None:
    """A GPT-2 compiled once runs batches 1 to 64 and lengths 8 to 512, and gives the eager program's feedback."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=512, use_cache=False)
    torch.manual_seed(0)
    model, twin = GPT2LMHeadModel(config).double().eval(), GPT2LMHeadModel(config).double().eval()
    twin.load_state_dict(model.state_dict())
    lfpgraph.wrap(model, compile=True)
    lfpgraph.wrap(twin, engine="static")
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        for n, length in ((4, 16), (1, 8), (2, 512), (64, 8), (3, 33)):
            ids = torch.randint(0, 50, (n, length))
            assert_same(gradients(model, input_ids=ids), gradients(twin, input_ids=ids), 1e-8, 1e-11)
    assert_made(model, "static", 1 + ("batch of one" in caplog.text))


def test_saved_tensors_with_room_between_their_rows() -> None:
    """As inductor lays them out on a GPU; sizes left open stay open."""
    graph = lfpgraph.trace(mlp(), torch.randn(6, 8))
    (x,) = (n.meta["val"] for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "input")
    with x.fake_mode:
        saved = x.new_empty(x.shape[0], 4, 10)
        padded, turned, expanded = (_laid_out(saved, strides) for strides in ([48, 12, 1], [10, 60, 1], [0, 10, 1]))
    assert padded.shape == saved.shape and padded.stride() == (48, 12, 1) and expanded.stride() == (0, 10, 1)
    assert isinstance(turned.stride()[1], torch.SymInt) and hint(turned.stride()[1]) == 60 and turned.stride()[0] == 10
