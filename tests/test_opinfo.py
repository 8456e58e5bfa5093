"""The live engine on PyTorch's own database of operations, against plain autograd."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("expecttest", reason="the database of operations needs it")

from .support.opinfo import Outcome, differentiable, outcomes  # noqa: E402

# What is known to differ, with its reason: by operation, what its samples may come to instead of "equal" and "finite".
EXPECTED: dict[str, str] = {}


def _misses(found: list[Outcome]) -> list[Outcome]:
    return [o for o in found if (o.gradient != "equal" or o.feedback != "finite") and o.name not in EXPECTED]


def test_a_sample_of_operations() -> None:
    """Sixty operations, always the same ones."""
    chosen = random.Random(13).sample(differentiable(), 60)
    found = [outcome for op in chosen for outcome in outcomes(op, most=1)]
    assert len(found) >= 50
    assert _misses(found) == []


@pytest.mark.slow
def test_all_operations() -> None:
    """Two samples of each; a gradient equal to autograd's, finite feedback, and no exception."""
    found = [outcome for op in differentiable() for outcome in outcomes(op)]
    assert len(found) >= 1000
    assert _misses(found) == []
