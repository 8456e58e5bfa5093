"""ONNX's own tests of its operators, through our importer, held to tests/golden/onnx_nodes.csv."""

from __future__ import annotations

import pytest

from tools.onnx_nodes import known, results

KNOWN = known()


@pytest.mark.parametrize("kind", [kind for kind, counts in KNOWN.items() if counts["passed"]])
def test_an_operator(kind: str) -> None:
    """No fewer cases pass than did, and none has come to give other numbers."""
    found = results(kind)
    assert found["passed"] >= KNOWN[kind]["passed"] and found["wrong"] <= KNOWN[kind]["wrong"], found
    assert set(found) <= {"passed", "refused", "wrong", "no tensor"}
