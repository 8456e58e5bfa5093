"""PyTorch's databases of operations and modules, live: `python -m tools.oracles` writes tests/golden/oracles.csv.

A line of that table says how an operation's samples went; `tests/test_opinfo.py` holds each operation to its line.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from tests.support.opinfo import Outcome, differentiable, module_outcomes, modules, outcomes

__all__ = ["MOST", "TABLE", "Line", "lines", "misses", "run", "told"]

TABLE = Path(__file__).parents[1] / "tests" / "golden" / "oracles.csv"
# How many samples of each are run; None: all. ("static", "operation") and "module" run too, at a second of a trace for each.
MOST: dict[tuple[str, str], int | None] = {("live", "operation"): None, ("live", "module"): None}


@dataclass
class Line:
    """How the samples of an operation or module went.

    Attributes:
        equal: samples whose gradient equals autograd's. finite: whose feedback is finite. derived: finite, without a rule.
        refused: refused with an error of ours.
        why: what became of the others.
    """

    engine: str
    kind: str
    name: str
    samples: int = 0
    equal: int = 0
    finite: int = 0
    derived: int = 0
    refused: int = 0
    why: str = ""

    def add(self, outcome: Outcome) -> None:
        self.samples += 1
        self.equal += outcome.gradient == "equal"
        self.finite += outcome.feedback.startswith("finite")
        self.derived += outcome.feedback == "finite, no rule"
        self.refused += outcome.gradient.startswith("refused") or outcome.feedback.startswith("refused")
        for found in (outcome.gradient, outcome.feedback):
            if not self.why and found != "equal" and not found.startswith("finite"):
                self.why = " ".join(found.partition(" at opinfo.py:")[2].partition(": ")[2].split() or found.split())[
                    :90
                ]


def run(engine: str, kind: str, most: int | None = None, part: int = 0, parts: int = 1) -> Iterator[Line]:
    """Run the samples, `most` of each; of all operations one part of several."""
    for info in (differentiable() if kind == "operation" else modules())[part::parts]:
        found: dict[str, Line] = {}
        for outcome in (outcomes if kind == "operation" else module_outcomes)(info, most, engine):
            found.setdefault(outcome.name, Line(engine, kind, outcome.name)).add(outcome)
        yield from found.values()


def misses(line: Line, known: dict[tuple[str, str, str], Line]) -> str:
    """What is worse in a line than in the table, or ""."""
    before = known.get((line.engine, line.kind, line.name), Line(line.engine, line.kind, line.name))
    for what in ("equal", "finite"):
        lost, lost_before = line.samples - getattr(line, what), before.samples - getattr(before, what)
        if lost > lost_before:
            return f"{line}: {lost_before} samples were not {what} before"
    return f"{line}: it had rules before" if line.derived > before.derived else ""


def lines() -> dict[tuple[str, str, str], Line]:
    """The table."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {f.name for f in fields(Line) if f.type == "int"}
    found = [Line(**{k: int(v) if k in numbers else v for k, v in row.items()}) for row in rows]  # type: ignore[arg-type]
    return {(line.engine, line.kind, line.name): line for line in found}


def told(found: list[Line]) -> tuple[int, int, str]:
    """Samples, samples that held, and a sentence for docs/trust.md."""
    count = sum(line.samples for line in found)
    refused, derived = sum(line.refused for line in found), sum(line.derived for line in found)
    held = sum(min(line.equal, line.finite) for line in found)
    lost = [line for line in found if min(line.equal, line.finite) + line.refused < line.samples]
    names = ", ".join(f"{line.name} ({line.why})" for line in lost)
    version = torch.__version__.partition("+")[0]
    note = f"{len(found)} of them, torch {version}; {refused} refused, {derived} without a rule of their own"
    return count, held, note + (f"; {names}" if names else "")


def main() -> None:
    logging.getLogger("lfpgraph").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    found = []
    for (engine, kind), most in MOST.items():
        part = list(run(engine, kind, most))
        print(engine, kind, *told(part), flush=True)
        found += part
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in found)


if __name__ == "__main__":
    main()
