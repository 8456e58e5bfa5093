"""Mutated ONNX files: whatever is in them, they run or give one clear error of our own, and memory stays bounded."""

from __future__ import annotations

import collections
import resource

import pytest

pytest.importorskip("onnx")

from .support.onnx_fuzz import outcome  # noqa: E402


def check(count: int, fewest: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = collections.Counter(map(outcome, range(count)))
    assert min(seen[way] for way in ("refused", "failed", "ran")) > fewest
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4_000_000  # kB


def test_mutated_files_give_our_own_errors() -> None:
    check(400, 5)


@pytest.mark.slow
def test_five_thousand_mutated_files() -> None:
    check(5000, 50)
