"""Ways of training side by side on a CNN, a ViT and a graph network: the tables of docs/methods.md.

python -m benchmarks.compared cnn FOLDER    runs what is missing, one file a way, and prints the table
lfpgraph compare benchmarks.compared:vit benchmarks.compared:digits --ways lfp,backprop,local --steps 300 --seeds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lfpgraph.models_zoo.digits import cnn, vit
from lfpgraph.models_zoo.other_kinds import GCN
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lfpgraph.comparison import compare, method_named
from lfpgraph.comparison.examples import IGNORED, Examples
from lfpgraph.comparison.runs import optimizer_of, step
from lfpgraph.demo.data import digits
from lfpgraph.errors import LfpGraphError

__all__ = ["cnn", "digits", "gnn", "graph", "vit"]

NODES, CLASSES, FEATURES = 1000, 6, 16


def gnn() -> nn.Module:
    """The zoo's graph convolutional network, which is given a whole graph."""
    return GCN(FEATURES, 32, CLASSES)


def graph() -> tuple[Any, Any]:
    """Nodes in communities, with noisy features, and edges mostly within a community; half of the labels are held out."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (NODES,), generator=generator)
    same = labels[:, None] == labels
    chances = torch.where(same, 6.0 * CLASSES, 4.0 * CLASSES / (CLASSES - 1)) / NODES
    edges = (torch.rand(NODES, NODES, generator=generator) < chances / 2).nonzero().T
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    features = 0.5 * centres[labels] + torch.randn(NODES, FEATURES, generator=generator)
    whole = features, torch.cat([edges, edges.flip(0)], 1)
    train, test = labels.clone(), labels.clone()
    train[NODES // 2 :], test[: NODES // 2] = IGNORED, IGNORED
    return tuple(DataLoader([(whole, y)], batch_size=None) for y in (train, test))  # type: ignore[return-value,arg-type]


WAYS = (
    "backprop", "lfp", "local", "auglocal", "man", "forward-gnn", "counter-current", "usf", "fa", "dfa", "drtp", "tpsgd",
    "forward-forward", "noprop", "mezo", "es",
)  # fmt: skip
TASKS = {
    "cnn": (cnn, digits, 300, (1e-3, 3e-3, 1e-2)),
    "vit": (vit, digits, 400, (3e-4, 1e-3)),
    "gnn": (gnn, graph, 200, (3e-3, 1e-2, 3e-2)),
}


def run(task: str, folder: Path, ways: list[str]) -> None:
    """Train in each way that has no file yet."""
    build, data, steps, rates = TASKS[task]
    for way in ways:
        file = folder / f"{task}-{way}.json"
        if not file.exists():
            found = compare(build, *data(), (way,), steps=steps, rates=rates, seeds=3, name=task)
            file.write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")


def times(task: str, file: Path, ways: list[str], rounds: int = 11) -> None:
    """Processor seconds of a step, the ways in turn, the median of some rounds; those that cannot train are left out."""
    build, data, _, rates = TASKS[task]
    batch = next(Examples.of(data()[0], "train").batches(0, 64))
    learners: dict[str, tuple[Any, ...]] = {}
    for way in ways:
        torch.manual_seed(0)
        method = method_named(way)
        with contextlib.suppress(LfpGraphError):
            learner = method.learner_of(build().train(), cross_entropy, batch[0])
            learners[way] = learner, method, optimizer_of(learner, method, rates[0])
    taken: dict[str, list[float]] = {way: [] for way in learners}
    for _ in range(rounds):
        for way, (learner, method, optimizer) in learners.items():
            begin = time.process_time()
            step(learner, method, optimizer, rates[0], batch)
            taken[way].append(time.process_time() - begin)
    file.write_text(json.dumps({way: statistics.median(seconds[3:]) for way, seconds in taken.items()}))


def table(task: str, folder: Path, ways: list[str]) -> str:
    """The rows, by accuracy; memory is that of a step and, in brackets, with what is kept, over backprop's."""
    found = {way: json.loads((folder / f"{task}-{way}.json").read_text())["ways"][0] for way in ways}
    base = found["backprop"]
    times = json.loads((folder / f"{task}-times.json").read_text())
    rows = {}
    for way, one in found.items():
        if one["failure"]:
            rows[way] = (-1.0, f"| `{way}` | cannot: {one['failure']} | | | | |")
            continue
        scores = [run["accuracy"] for run in one["runs"]]
        angles = [_mean(one["runs"][0]["angles"][i]) for i in (0, -1)]
        share = one["peak_bytes"] / base["peak_bytes"]
        whole = (one["peak_bytes"] + one["kept_bytes"]) / (base["peak_bytes"] + base["kept_bytes"])
        mean = statistics.fmean(scores)
        took = times[way] / times["backprop"]
        text = (
            f"| `{way}` | {100 * mean:.1f} ± {100 * statistics.stdev(scores):.1f} % | {one['rate']:g} | {took:.1f} | "
        )
        rows[way] = mean, text + f"{share:.2f} ({whole:.2f}) | {angles[0]:.0f}°, {angles[1]:.0f}° |"
    head = "| way | held-out accuracy | rate | time of a step | memory of a step | angle, first and last |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(row for _, row in sorted(rows.values(), reverse=True))])


def _mean(angles: dict[str, float | None]) -> float:
    known = [value for value in angles.values() if value is not None]
    return statistics.fmean(known) if known else math.nan


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", default=",".join(WAYS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chosen = given.ways.split(",")
    run(given.task, given.folder, chosen)
    times(given.task, given.folder / f"{given.task}-times.json", chosen)
    print(table(given.task, given.folder, chosen))
