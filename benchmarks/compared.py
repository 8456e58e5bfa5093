"""Ways of training side by side on a CNN, a ViT, a graph network, spiking neurons and draws: the tables of docs/methods.md.

python -m benchmarks.compared cnn           runs what docs/methods/cnn.json lacks, way by way, and writes the table
python -m benchmarks.compared cnn --folder /tmp/mine --ways lfp,backprop
lfpgraph compare benchmarks.compared:vit benchmarks.compared:digits --ways lfp,backprop,local --steps 300 --seeds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lfpgraph.models_zoo.digits import cnn, vit
from lfpgraph.models_zoo.other_kinds import GCN, SpikingMLP
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lfpgraph.comparison import compare, method_named
from lfpgraph.comparison.examples import IGNORED, Examples
from lfpgraph.comparison.runs import optimizer_of, step
from lfpgraph.demo.data import digits
from lfpgraph.errors import LfpGraphError

__all__ = ["FOLDER", "PAGE", "TASKS", "cnn", "digits", "draws", "gnn", "graph", "spikes", "table", "vit", "with_table"]

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "docs/methods", ROOT / "docs/methods.md"
NODES, CLASSES, FEATURES = 1000, 6, 16


def gnn() -> nn.Module:
    """The zoo's graph convolutional network, which is given a whole graph."""
    return GCN(FEATURES, 32, CLASSES)


def spikes() -> nn.Module:
    """Two layers of leaky neurons, five steps; the output is how often each of the last ones spiked."""

    class Counted(SpikingMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.steps

    return nn.Sequential(nn.Flatten(), Counted(64, 128, 10, 5))


def draws() -> nn.Module:
    """A hidden layer of neurons that are on or off by chance."""

    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bernoulli(x.sigmoid())

    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), Drawn(), nn.Linear(128, 10))


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


@dataclass(frozen=True)
class Task:
    """A model, its data, steps, rates, and the ways that train it."""

    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Any, Any]]
    steps: int
    rates: tuple[float, ...]
    ways: tuple[str, ...]


WAYS = (
    "backprop", "lfp", "local", "auglocal", "man", "forward-gnn", "counter-current", "usf", "fa", "dfa", "drtp", "tpsgd",
    "forward-forward", "noprop", "mezo", "es",
)  # fmt: skip
TASKS = {
    "cnn": Task(cnn, digits, 300, (1e-3, 3e-3, 1e-2), WAYS),
    "vit": Task(vit, digits, 400, (3e-4, 1e-3), WAYS),
    "gnn": Task(gnn, graph, 200, (3e-3, 1e-2, 3e-2), WAYS),
    "spikes": Task(
        spikes, digits, 300, (3e-3, 1e-2), ("backprop", "lfp", "surrogate", "straight-through", "sltt", "sltt-k")
    ),
    "draws": Task(draws, digits, 300, (3e-3, 1e-2), ("backprop", "lfp", "unbiased", "through-draws", "smooth-draws")),
}


def run(name: str, file: Path, ways: list[str]) -> None:
    """Train in each way that the file has not yet."""
    task = TASKS[name]
    for way in ways:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"ways": {}, "step_s": {}}
        if way not in known["ways"]:
            found = compare(task.build, *task.data(), (way,), steps=task.steps, rates=task.rates, seeds=3, name=name)
            known |= {"torch": torch.__version__, "budget": found.budget, "batch_size": found.batch_size}
            known["ways"][way] = shorter(found.to_json()["ways"][0])
            file.write_text(json.dumps(known, indent=None).replace('"way":', '\n"way":'), encoding="utf-8")


def shorter(way: dict[str, Any]) -> dict[str, Any]:
    """A way's figures with the mean of its layers' angles in place of each."""
    for one in way["runs"]:
        known = [[value for value in angles.values() if value is not None] for angles in one["angles"]]
        one["angles"] = [round(statistics.fmean(values), 1) if values else None for values in known]
    return way


def times(name: str, file: Path, ways: list[str], rounds: int = 11) -> None:
    """Processor seconds of a step, the ways in turn, the median of some rounds; those that cannot train are left out."""
    task = TASKS[name]
    batch = next(Examples.of(task.data()[0], "train").batches(0, 64))
    learners: dict[str, tuple[Any, ...]] = {}
    for way in ways:
        torch.manual_seed(0)
        method = method_named(way)
        with contextlib.suppress(LfpGraphError):
            learner = method.learner_of(task.build().train(), cross_entropy, batch[0])
            optimizer = optimizer_of(learner, method, task.rates[0])
            step(learner, method, optimizer, task.rates[0], batch)
            learners[way] = learner, method, optimizer
    taken: dict[str, list[float]] = {way: [] for way in learners}
    for _ in range(rounds):
        for way, (learner, method, optimizer) in learners.items():
            begin = time.process_time()
            step(learner, method, optimizer, task.rates[0], batch)
            taken[way].append(time.process_time() - begin)
    known = json.loads(file.read_text(encoding="utf-8"))
    known["step_s"] = {way: round(statistics.median(seconds[3:]), 6) for way, seconds in taken.items()}
    file.write_text(json.dumps(known, indent=None).replace('"way":', '\n"way":'), encoding="utf-8")


def table(file: Path) -> str:
    """The rows, by accuracy; memory is that of a step and, in brackets, with what is kept, over backprop's."""
    known = json.loads(file.read_text(encoding="utf-8"))
    found, took = known["ways"], known["step_s"]
    base = found["backprop"]
    rows = []
    for way, one in found.items():
        if one["failure"]:
            rows.append((-1.0, f"| `{way}` | cannot: {one['failure']} | | | | |\n"))
            continue
        scores = [run["accuracy"] for run in one["runs"]]
        if None in scores:
            rows.append((-0.5, f"| `{way}` | diverged | {one['rate']:g} | | | |\n"))
            continue
        angles = [
            "none" if one["runs"][0]["angles"][i] is None else f"{one['runs'][0]['angles'][i]:.0f}°" for i in (0, -1)
        ]
        share = one["peak_bytes"] / base["peak_bytes"]
        whole = (one["peak_bytes"] + one["kept_bytes"]) / (base["peak_bytes"] + base["kept_bytes"])
        mean = statistics.fmean(scores)
        longer = f"{took[way] / took['backprop']:.1f}" if way in took else ""
        text = f"| `{way}` | {100 * mean:.1f} ± {100 * statistics.stdev(scores):.1f} % | {one['rate']:g} | {longer} | "
        rows.append((mean, text + f"{share:.2f} ({whole:.2f}) | {', '.join(angles)} |\n"))
    head = "| way | held-out accuracy | rate | time of a step | memory of a step | angle, first and last |\n"
    return head + "|---|---|---|---|---|---|\n" + "".join(row for _, row in sorted(rows, reverse=True))


def with_table(page: str, name: str, text: str) -> str:
    """The page with a table between its marks."""
    return re.sub(rf"(<!-- compared: {name} -->\n)(?:.*\n)*?(<!-- end -->)", lambda m: m[1] + text + m[2], page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--ways", help="with commas between; all by default")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    kept = given.folder / f"{given.task}.json"
    chosen = given.ways.split(",") if given.ways else list(TASKS[given.task].ways)
    run(given.task, kept, chosen)
    times(given.task, kept, chosen)
    print(table(kept))
    if given.folder == FOLDER:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), given.task, table(kept)), encoding="utf-8")
