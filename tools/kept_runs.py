"""Makes a few of the kept runs of docs/experiments/*.jsonl again, and says whether this code still finds what they say.

    python -m tools.kept_runs [--count 2] [--seconds 60] [--way LFP] [NAME ...]

A table of docs/experiments.md is of the code that made its runs. Whether a later change moved them shows here, without making
hundreds of runs again: some are drawn by chance, the same ones for the same `--draw`. A run repeats to the last digit on
the same machine and the same torch; elsewhere rounding alone moves a curve.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lfpgraph.errors import InputError
from lfpgraph.experiments import EXPERIMENTS, Runs, Settings
from tools.experiments import RUNS

__all__ = ["Again", "drawn"]


@dataclass(frozen=True)
class Again(Runs):
    """Runs of a file, of which those in `chosen` are made again; `differences` holds how far its figures are from those kept."""

    chosen: tuple[dict[str, Any], ...] = ()
    differences: list[tuple[dict[str, Any], list[float]]] = field(default_factory=list)

    def make(self, key: dict[str, Any], task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        kept = Runs(self.file, kept_only=True).make(key, task)
        if key in self.chosen and not any(key == done for done, _ in self.differences):
            pairs = zip(_figures(kept), _figures(task()), strict=True)
            self.differences.append((key, [b - a for a, b in pairs]))
        return kept


def _figures(found: dict[str, Any]) -> list[float]:
    """What a run measured: its curve, or its one accuracy."""
    return list(found["curve"]) if "curve" in found else [found["accuracy"]]


def drawn(lines: list[str], count: int, seconds: float, way: str, draw: int) -> tuple[dict[str, Any], ...]:
    """So many runs of this torch on a CPU, each of at most so many seconds by what its steps took."""

    def cost(run: dict[str, Any], found: dict[str, Any]) -> float:
        steps = run["epochs"] * -(-run["samples"] // run.get("batch_size", 8))
        return float(found.get("step_seconds", 0.05) * steps)

    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if (row["torch"], row["device"]) == (torch.__version__, "cpu")]
    fit = [
        row["run"] for row in rows if row["run"]["way"].startswith(way) and cost(row["run"], row["found"]) <= seconds
    ]
    return tuple(random.Random(draw).sample(fit, min(count, len(fit))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments; all that have runs by default")
    parser.add_argument("--count", type=int, default=2, help="runs of each")
    parser.add_argument("--seconds", type=float, default=60, help="the most that a run may take")
    parser.add_argument("--way", default="LFP", help="how the name of the way of training begins")
    parser.add_argument("--draw", type=int, default=0, help="another number draws others")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names or sorted(file.stem for file in RUNS.glob("*.jsonl")):
        file = RUNS / f"{name}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()
        try:
            chosen = drawn(lines, given.count, given.seconds, given.way, given.draw)
            seeds = 1 + max(json.loads(line)["run"].get("seed", 0) for line in lines)
            runs = Again(file, chosen=chosen)
            EXPERIMENTS[name].run(Settings(seeds, runs=runs))
        except (InputError, KeyError) as error:
            print(f"{name}: not made again: {error!r}", flush=True)
            continue
        print(f"{name}: {len(runs.differences)} of {len(lines)} made again", flush=True)
        for run, off in runs.differences:
            what = f"{run['model']}, {run['way']}, rate {run.get('lr')}, seed {run['seed']}"
            print(f"  {max(map(abs, off)):.1e}, at the end {off[-1]:+.1e}  {what}", flush=True)


if __name__ == "__main__":
    main()
