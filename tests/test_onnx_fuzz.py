"""Mutated ONNX files: whatever is in them, they run or give one clear error of our own, and memory stays bounded."""

from __future__ import annotations

import resource

import pytest

pytest.importorskip("onnx")

from .support.onnx_fuzz import fuzz  # noqa: E402


def test_mutated_files_give_our_own_errors() -> None:
    seen = fuzz(400, seed=0)
    assert min(seen.values()) > 5


@pytest.mark.slow
def test_five_thousand_mutated_files() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = fuzz(5000, seed=1)
    assert min(seen.values()) > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4_000_000  # kB
