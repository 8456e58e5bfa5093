"""What a trace would lose is refused or told of, and what is done once in a process is not noticed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import TraceError
from lfpgraph.wrapping import readiness


class Odd(nn.Module):
    """A linear layer before and after something odd."""

    def __init__(self, odd: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.odd(self, self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("fallback", ["error", "retrace"])
def test_detaching_in_place_is_refused(fallback: str) -> None:
    def cut(self: Odd, x: Tensor) -> Tensor:
        x.detach_()
        return x * self.scale

    with pytest.raises(TraceError, match="detach_"):
        lfpgraph.feedback(Odd(cut), torch.randn(3, 4), lambda out: out, fallback=fallback)
    assert torch.randn(2, requires_grad=True).mul(2).detach_().grad_fn is None


def test_parameters_that_forward_writes_to_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 2))
    found = lfpgraph.feedback(model, torch.arange(3), lambda out: out)
    said = [record.getMessage() for record in caplog.records if record.name == "lfpgraph"]
    assert "0.weight" not in found and [text.startswith("forward writes to 0.weight") for text in said] == [True]


def test_hooks_that_a_trace_leaves_out_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def hooked(self: Odd, x: Tensor) -> Tensor:
        x.register_hook(lambda s: 2 * s)
        return x * self.scale

    for _ in range(2):
        lfpgraph.feedback(Odd(hooked), torch.randn(3, 4), lambda out: out)
    said = [record.getMessage() for record in caplog.records if record.name == "lfpgraph"]
    assert sum("sets a hook on a tensor" in text for text in said) == 1


def test_the_first_wrap_draws_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a process does once before a live run is done in `wrap`, unseen."""
    runs: list[int] = []
    run_one = readiness._run_one
    monkeypatch.setattr(readiness, "_run_one", lambda: runs.append(1) or run_one())
    monkeypatch.setattr(readiness, "_ready", False)
    caplog.set_level(logging.INFO, "lfpgraph")
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    state = torch.get_rng_state()
    for model in models:
        lfpgraph.wrap(model, engine="live")
    assert runs == [1] and caplog.records == []
    assert torch.equal(state, torch.get_rng_state())


def test_reward_that_stops_at_whole_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """As in a layer that quantises what it is given: what lies before it, and only that, is named, with the place."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(Odd(lambda self, x: (10 * x).to(torch.int8).float() * self.scale))
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        model(torch.randn(3, 4)).sum().backward()
    (said,) = [record.getMessage() for record in caplog.records]
    assert (
        said.startswith("2 parameters that train receive no reward (first.weight, first.bias)")
        and "aten.to.dtype" in said
    )
    assert model.first.weight.grad is None and model.last.weight.grad is not None


class Idle(nn.Module):
    """Nothing reads what one of its layers makes; or only what is made of that where no gradients are recorded."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.first, self.idle, self.last, self.read = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        idle = self.idle(h)
        with torch.no_grad():
            gate = (idle if self.read else h).sigmoid()
        return self.last(h * gate)


@pytest.mark.parametrize("read", [False, True])
def test_a_layer_of_which_nothing_is_read(read: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is named where reward stops at it unseen, and no other is."""
    model = lfpgraph.wrap(Idle(read), engine="live")
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        model(torch.randn(3, 4)).sum().backward()
    said = [record.getMessage() for record in caplog.records if record.name == "lfpgraph"]
    assert ["(idle.weight, idle.bias)" in text and "aten.mul.Tensor" in text for text in said] == [True] * read
    assert model.idle.weight.grad is None and model.first.weight.grad is not None


class Words(nn.Module):
    """Takes words that are no tensors, and leaves its state in the nodes it is given, as models of trees do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, nodes: list[dict[str, Any]]) -> Tensor:
        for node in nodes:
            node["state"] = self.table(torch.tensor([node["word"]])).tanh()
        return self.last(torch.cat([node["state"] for node in nodes]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("labelled", [False, True])
def test_words_looked_up_inside_get_feedback_or_a_line(labelled: bool, caplog: pytest.LogCaptureFixture) -> None:
    """States left in the nodes are no input; a label, which nothing reads, is one: then parameters alone are computed on."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(Words(), engine="live")
    plain = Words()
    plain.load_state_dict(model.state_dict())
    for net in (model, plain):
        label = {"label": torch.ones(1)} if labelled else {}
        net([{"word": n, **label} for n in range(3)]).square().sum().backward()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.startswith("Words computes nothing of the tensors") for text in said] == [True] * labelled
    assert torch.equal(model.table.weight.grad, plain.table.weight.grad) is labelled  # type: ignore[arg-type]
