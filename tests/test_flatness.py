"""A long run stays flat: no new traces or plans once the kinds of sizes have been seen, and nothing that piles up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from benchmarks.flatness import CASES, run

# The most traces and plans that a model may need for all sizes. Beyond one: a batch of one; a text as long as the table of
# positions; a mask that hides nothing; each set of experts that rows go to; each length of a loop.
MOST = {
    "mlp": (1, 1), "cnn": (1, 1), "vit": (1, 2), "bert": (3, 6), "gpt2": (3, 4), "experts": (1, 15), "lstm": (16, 16),
    "cells": (16, 16),
}  # fmt: skip
QUICK = [("mlp", "auto"), ("mlp", "live"), ("experts", "live")]
# Here "auto" runs by the static engine from its second call on, where that can run a model at all.
LONG = [*((name, engine) for name in CASES for engine in ("auto", "live")), ("mlp", "static"), ("gpt2", "static")]


def check(name: str, engine: str, steps: int) -> None:
    found = run(name, engine, steps)
    traces, plans = MOST[name]
    assert found.traces[1] <= traces and found.plans[1] <= plans, found.why
    traced, planned = found.traces[1] - found.traces[0], found.plans[1] - found.plans[0]
    # Fewer is no fault: torch keeps the sizes of the last trace of an earlier model, and lets them go when it likes.
    assert traced or planned or found.tensors[1] <= found.tensors[0]
    assert found.tensors[1] - found.tensors[0] <= 3000 * traced + 400 * planned
    assert found.cycles <= 3000 * traced + 400 * planned
    # Whether a graph fits sizes is worked out by sympy, which keeps some thousand results.
    assert found.python_kb <= 200 + (5_000 if found.traces[0] else 0) + 20_000 * traced + 1_000 * planned


@pytest.mark.parametrize(("name", "engine"), QUICK)
def test_forty_steps_are_flat(name: str, engine: str) -> None:
    check(name, engine, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), LONG)
def test_five_hundred_steps_are_flat(name: str, engine: str) -> None:
    check(name, engine, 500)


class Noisy(nn.Module):
    """Draws from a generator that it makes anew in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, seed: int) -> Tensor:
        return self.layer(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))


def test_a_generator_made_anew_needs_no_new_plan() -> None:
    model = lfpgraph.wrap(Noisy(), engine="live")
    for seed in range(3):
        model(torch.ones(2, 6), seed).sum().backward()
    assert lfpgraph.explain_wrap(model).plans == 1
