"""Runs of experiments: side by side, kept in a file and not made again, made again to see whether they still say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn
from torch.nn.functional import cross_entropy

from lfpgraph.errors import InputError
from lfpgraph.experiments import Runs, Settings
from lfpgraph.experiments.common import data
from lfpgraph.experiments.common.harness import Case, Way, fit
from lfpgraph.experiments.common.models import mlp, seeded
from lfpgraph.experiments.common.rates import tuned
from tools.experiments import PAGE, RUNS, report_of, table_of, with_table
from tools.kept_runs import Again, drawn


def test_runs_side_by_side_are_the_same_and_are_made_once(tmp_path: Path) -> None:
    """In processes of their own they find what they find one after the other; what the file has is not run again."""
    train, test = data.flat_digits()
    start, file = seeded(lambda: mlp([64, 8, 10])), tmp_path / "runs.jsonl"
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]

    def cases(runs: Runs) -> dict[str, list[float]]:
        settings = Settings(1, runs=runs)
        found, _ = tuned(start(0), ways, (1e-4, 1e-2), train, test, settings, epochs=1, name="MLP", start=start)
        return {case.way: case.values for case in found}

    one_by_one = cases(Runs())
    assert cases(Runs.side_by_side(2, file)) == one_by_one
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 6 and all(
        line["found"]["step_seconds"] > 0 for line in lines
    )  # for each way two rates, and the better one on all of the set
    assert cases(Runs(file)) == one_by_one and len(file.read_text().splitlines()) == 6
    for line in lines:
        line["found"]["curve"] = [value + 1 for value in line["found"]["curve"]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cases(Runs(file)) == {way: [value + 1 for value in values] for way, values in one_by_one.items()}


def test_a_run_that_fails_in_its_process_is_told() -> None:
    def fails() -> None:
        raise ValueError("of this run")

    with pytest.raises(RuntimeError, match="(?s)1 of 2 runs failed.*of this run"):
        Runs.side_by_side(2).together([fails, lambda: None])


def test_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    """Also what was asked of the trained model; without its file of runs nothing is trained, but an error raised."""
    train, test = data.flat_digits()
    way, asked = Way("backprop", None, cross_entropy), list[int]()

    def after(seed: int, model: nn.Module) -> dict[str, int]:
        asked.append(seed)
        return {"seed": seed}

    def case(runs: Runs) -> Case:
        settings = Settings(2, 0.01, runs=runs)
        (found,) = fit(mlp([64, 8, 10]), [way], train, test, settings, epochs=1, after=after)
        return found

    with pytest.raises(InputError, match="holds no run"):
        case(Runs(tmp_path / "runs.jsonl", kept_only=True))
    first = case(Runs(tmp_path / "runs.jsonl"))
    assert case(Runs(tmp_path / "runs.jsonl", kept_only=True)).values == first.values
    assert asked == [0, 1] and first.more == {"seed": [0, 1]}


def test_kept_runs_are_made_again(tmp_path: Path) -> None:
    """A run that this code repeats differs by nothing; one that was altered in the file, by as much as it was."""
    train, test = data.flat_digits()
    ways, start = [Way("LFP", "lfp", cross_entropy)], seeded(lambda: mlp([64, 8, 10]))
    file = tmp_path / "runs.jsonl"

    def curves(runs: Runs) -> list[list[float]]:
        settings = Settings(2, runs=runs)
        return fit(start(0), ways, train, test, settings, epochs=1, name="MLP", start=start)[0].curves

    curves(Runs(file))
    lines = file.read_text().splitlines()
    altered = json.loads(lines[1])
    altered["found"]["curve"][0] += 0.25
    file.write_text("\n".join([lines[0], json.dumps(altered)]))
    lines = file.read_text().splitlines()
    assert drawn(lines, 2, 60, "backprop", 0) == () == drawn(lines, 2, 0, "LFP", 0)
    again = Again(file, chosen=drawn(lines, 2, 60, "LFP", 0))
    assert curves(again)[1] == altered["found"]["curve"]  # what is kept stays what the table shows
    assert {run["seed"]: off for run, off in again.differences} == {0: [0.0], 1: [pytest.approx(-0.25, abs=0.02)]}


@pytest.mark.parametrize("name", sorted(file.stem for file in RUNS.glob("*.jsonl")))
def test_the_page_says_what_its_runs_found(name: str) -> None:
    """The table of each experiment is written from the runs that are kept beside the page, which choose the rates as well."""
    try:
        table = table_of(report_of(name))
    except InputError as error:
        pytest.skip(str(error))  # of a package that the experiment's data comes with
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, name, table) == page
