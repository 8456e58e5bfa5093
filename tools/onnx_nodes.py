"""ONNX's own backend node tests through our importer: `python -m tools.onnx_nodes` prints the table of docs/onnx.md."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.loader import load_model_tests

from lfpgraph.errors import LfpGraphError
from lfpgraph.onnx import load

__all__ = ["results", "run_case", "table"]


def run_case(case: Any) -> str:
    """ "passed", or why not: "refused" (an error of ours), "wrong" numbers, or another exception's name."""
    try:
        model = load(case.model)
        for inputs, outputs in case.data_sets:
            found = model(*(torch.from_numpy(np.array(x)) for x in inputs))
            found = found if isinstance(found, tuple) else (found,)
            for value, expected in zip(found, outputs):
                value = value.detach().numpy()
                np.testing.assert_allclose(value, expected, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5))
                if value.dtype != np.asarray(expected).dtype:
                    return "wrong"
    except LfpGraphError:
        return "refused"
    except AssertionError:
        return "wrong"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "passed"


def results() -> dict[str, collections.Counter[str]]:
    """For each operator how its cases went; a case of several operators counts for the first one."""
    found: dict[str, collections.Counter[str]] = {}
    for case in load_model_tests(kind="node"):
        node = case.model.graph.node[0]
        if node.domain not in ("", "ai.onnx"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.setdefault(node.op_type, collections.Counter())[run_case(case)] += 1
    return found


def table(found: dict[str, collections.Counter[str]]) -> str:
    """Operators by how many of their cases pass."""
    whole = sorted(kind for kind, counts in found.items() if set(counts) == {"passed"})
    part = sorted(kind for kind, counts in found.items() if counts["passed"] and kind not in whole)
    none = sorted(kind for kind, counts in found.items() if not counts["passed"])
    cases, passed = sum(c.total() for c in found.values()), sum(c["passed"] for c in found.values())
    wrong = sorted(f"{kind} {counts['wrong']}" for kind, counts in found.items() if counts["wrong"])
    partly = ", ".join(f"{kind} {found[kind]['passed']}/{found[kind].total()}" for kind in part)
    return "\n".join(
        (
            f"| onnx {onnx.__version__}: {passed} of {cases} cases pass | operators | |",
            "|---|---|---|",
            f"| every case passes | {len(whole)} | {', '.join(whole)} |",
            f"| some cases pass | {len(part)} | {partly} |",
            f"| none: refused with a message | {len(none)} | {', '.join(none)} |",
            f"| other numbers or dtype than ONNX's | {len(wrong)} | {', '.join(wrong) or 'none'} |",
        )
    )


if __name__ == "__main__":
    everything = results()
    print(table(everything))
    others = {k: dict(c) for k, c in everything.items() if set(c) - {"passed", "refused", "wrong"}}
    if others:
        print("foreign exceptions:", others)
