"""ONNX's own tests of its operators through our importer: `python -m tools.onnx_nodes --page docs/onnx.md`.

It puts the table on that page and writes `tests/golden/onnx_nodes.csv`, which `tests/test_onnx_nodes.py` holds each operator to.
"""

from __future__ import annotations

import argparse
import collections
import csv
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.loader import load_model_tests

from lfpgraph.errors import LfpGraphError
from lfpgraph.onnx import load
from tools.pages import put_table

__all__ = ["cases", "known", "results", "run_case", "table"]

TABLE = Path(__file__).parents[1] / "tests" / "golden" / "onnx_nodes.csv"
_WAYS = ("passed", "refused", "no tensor", "wrong")


def run_case(case: Any) -> str:
    """ "passed", or why not: "refused" (by us), "wrong" numbers, "no tensor" for what it is given, or an exception."""
    try:
        model = load(case.model)
        for inputs, outputs in case.data_sets:
            found = model(*map(_tensor, inputs))
            found = found if isinstance(found, tuple) else (found,)
            for value, expected in _pairs(found, [_tensor(given) for given in outputs]):
                if (value.dtype, value.shape) != (expected.dtype, expected.shape):
                    return "wrong"
                numbers = (x.detach().double() if not x.is_complex() else x.detach() for x in (value, expected))
                rtol = max(case.rtol, _ROUNDING.get(value.dtype, 1e-3))
                torch.testing.assert_close(*numbers, rtol=rtol, atol=max(case.atol, 1e-5), equal_nan=True)
    except LfpGraphError:
        return "refused"
    except AssertionError:
        return "wrong"
    except _Unheld:
        return "no tensor"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "passed"


def _pairs(found: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    """What was found and what should have been, tensor by tensor; sequences are lists."""
    for value, other in zip(found, expected, strict=True):
        if isinstance(value, list) and isinstance(other, list):
            assert len(value) == len(other)
            yield from _pairs(value, other)
        else:
            yield value, other


_ROUNDING = {torch.bfloat16: 2e-2}  # one step of its last digit, and another of ours


def _tensor(given: Any) -> Any:
    """What a case is given as, as a tensor, or a list of them.

    Raises:
        _Unheld: torch has no such type.
    """
    if isinstance(given, list):
        return [_tensor(item) for item in given]
    array = onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)
    name = array.dtype.name
    try:
        if name == "bfloat16" or name.startswith("float8"):
            whole = array.view(np.int16 if name == "bfloat16" else np.uint8)
            return torch.from_numpy(whole.copy()).view(getattr(torch, name))
        return torch.from_numpy(array.copy())
    except (TypeError, AttributeError):
        raise _Unheld(name) from None


class _Unheld(Exception):
    """torch holds no tensors of this type: strings, two and four bits."""


@functools.cache
def cases() -> dict[str, list[Any]]:
    """The cases by operator; one of several operators is its first one's."""
    found: dict[str, list[Any]] = {}
    for case in load_model_tests(kind="node"):
        node = case.model.graph.node[0]
        if node.domain in ("", "ai.onnx"):
            found.setdefault(node.op_type, []).append(case)
    return found


def results(kind: str) -> collections.Counter[str]:
    """How an operator's cases went."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collections.Counter(run_case(case) for case in cases()[kind])


def known() -> dict[str, collections.Counter[str]]:
    """How they went when the table was written."""
    with TABLE.open(newline="") as file:
        rows = list(csv.reader(file))
    return {kind: collections.Counter(dict(zip(rows[0][1:], map(int, counts)))) for kind, *counts in rows[1:]}


def table(found: dict[str, collections.Counter[str]]) -> str:
    """Operators by how many of their cases pass."""
    whole = sorted(kind for kind, counts in found.items() if set(counts) == {"passed"})
    part = sorted(kind for kind, counts in found.items() if counts["passed"] and kind not in whole)
    none = sorted(kind for kind, counts in found.items() if not counts["passed"])
    cases, passed = sum(c.total() for c in found.values()), sum(c["passed"] for c in found.values())
    unheld = sum(c["no tensor"] for c in found.values())
    wrong = sorted(f"{kind} {counts['wrong']}" for kind, counts in found.items() if counts["wrong"])
    partly = ", ".join(f"{kind} {found[kind]['passed']}/{found[kind].total()}" for kind in part)
    return "\n".join(
        (
            f"| onnx {onnx.__version__}: {passed} of {cases} cases pass | operators | |",
            "|---|---|---|",
            f"| every case passes | {len(whole)} | {', '.join(whole)} |",
            f"| some cases pass | {len(part)} | {partly} |",
            f"| none: refused with a message | {len(none)} | {', '.join(none)} |",
            f"| given as what torch has no tensors for | {unheld} | strings, optional values, types of two and four bits |",
            f"| other numbers or dtype than ONNX's | {len(wrong)} | {', '.join(wrong) or 'none'} |",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="put the table there")
    page = parser.parse_args().page
    found = {kind: results(kind) for kind in sorted(cases())}
    print(table(found))
    foreign = {k: dict(c) for k, c in found.items() if set(c) - set(_WAYS)}
    if foreign:
        raise SystemExit(f"foreign exceptions: {foreign}")
    if page is not None:
        put_table(page, "onnx nodes", table(found).splitlines())
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["operator", *_WAYS], *([kind, *(counts[way] for way in _WAYS)] for kind, counts in found.items())]
        )


if __name__ == "__main__":
    main()
