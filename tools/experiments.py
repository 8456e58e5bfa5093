"""Writes the tables of docs/experiments.md from the runs kept in docs/experiments/*.jsonl, and their pictures.

    python -m tools.experiments [NAME ...]

A table stands between `<!-- runs: NAME -->` and `<!-- end -->`. The runs are those that `lfpgraph reproduce NAME --runs FILE`
makes. Which rate each side gets is found from them anew, by the experiment itself. Nothing is trained here: where a run is
missing, the table stays as it is, and a line says so.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from lfpgraph.errors import InputError
from lfpgraph.experiments import EXPERIMENTS, Report, Runs, Settings
from lfpgraph.experiments.common.harness import spread_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, RUNS = ROOT / "docs/experiments.md", ROOT / "docs/experiments"
_PLACE = r"(<!-- runs: {} -->\n)(?:.*\n)*?(<!-- end -->)"


def report_of(name: str) -> Report:
    """The report of an experiment, from its file of runs alone.

    Raises:
        InputError: a run is missing, or something that the experiment asks for.
    """
    file = RUNS / f"{name}.jsonl"
    seeds = 1 + max(json.loads(line)["run"].get("seed", 0) for line in file.read_text(encoding="utf-8").splitlines())
    return EXPERIMENTS[name].run(Settings(seeds, runs=Runs(file, kept_only=True)))


def table_of(report: Report) -> str:
    """Mean, spread and rate of each way, as a table in Markdown."""
    ways = list(dict.fromkeys(case.way for case in report.cases))
    models = list(dict.fromkeys(case.model for case in report.cases))
    cells = {}
    for case in report.cases:
        rate = f", {case.more['lr']:g}" if "lr" in case.more else ""
        cells[case.model, case.way] = spread_text(case, report.metric) + rate
    rows = [["", *ways], ["---"] * (1 + len(ways))]
    rows += [[model, *(cells.get((model, way), "") for way in ways)] for model in models]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def with_table(page: str, name: str, table: str) -> str:
    """The page with an experiment's table in its place.

    Raises:
        InputError: the page has no place for it, or several.
    """
    found, count = re.subn(_PLACE.format(re.escape(name)), lambda m: m[1] + table + m[2], page)
    if count != 1:
        raise InputError(f"the page has {count} places for the table of {name}")
    return found


def main() -> None:
    """Write the tables and pictures of the experiments named, or of all that have runs."""
    names = sys.argv[1:] or sorted(file.stem for file in RUNS.glob("*.jsonl"))
    for name in names:
        try:
            report = report_of(name)
        except InputError as error:
            print(f"{name}: left as it is: {error}")
            continue
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), name, table_of(report)), encoding="utf-8")
        report.plot(RUNS / f"{name}.png")
        print(f"{name}: written")


if __name__ == "__main__":
    main()
