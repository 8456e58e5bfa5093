"""Does a long run stay flat? Traces, plans and memory over hundreds of steps whose batch sizes and lengths vary.

    python -m benchmarks.flatness                         # all models, all engines, 500 steps
    python -m benchmarks.flatness gpt2 --engines auto     # one of them

Of each run the table says: traces and plans after a tenth of the steps and at the end (how often they grew after that
tenth stands in brackets), and what is alive then and at the end: tensors, and megabytes resident. `Python` is what Python
objects have grown by in between, in kilobytes (tracemalloc). `cycles` counts tensors that only the garbage collector could
free: there should be none.
"""

from __future__ import annotations

import argparse
import gc
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lfpgraph.models_zoo import torch_models
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph
from benchmarks.resident import resident

__all__ = ["CASES", "Flatness", "run"]

Draw = random.Random
Step = Callable[[nn.Module, Draw], Tensor]
ENGINES = ("auto", "live", "static")


class Experts(nn.Module):
    """Each row goes to its best two of four experts, and an expert that no row goes to does not run: a branch on data."""

    def __init__(self, width: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(width, experts), nn.Linear(width, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            if rows.numel():
                out = out.index_add(0, rows, expert(x[rows]) * weights[rows, places, None])
        return self.head(x + out)


class Cells(nn.Module):
    """A recurrent network as a loop of Python's: as many steps as the sequence is long."""

    def __init__(self, inputs: int = 4, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.cell, self.head, self.width = nn.GRUCell(inputs, width), nn.Linear(width, classes), width

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.width)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def _classified(*shape: Any) -> Step:
    """A step on random inputs of this shape; a range stands for a size that is drawn for each step."""

    def step(model: nn.Module, draw: Draw) -> Tensor:
        sizes = [draw.choice(size) if isinstance(size, range) else size for size in shape]
        out = model(torch.randn(sizes))
        return F.cross_entropy(out, torch.randint(out.shape[-1], out.shape[:1]))

    return step


def _images(model: nn.Module, draw: Draw) -> Tensor:
    n = draw.randint(1, 8)
    return model(pixel_values=torch.randn(n, 1, 8, 8), labels=torch.randint(10, (n,))).loss


def _texts(classes: int | None) -> Step:
    """A step on texts of several lengths, with a mask that hides what fills the shorter ones."""

    def step(model: nn.Module, draw: Draw) -> Tensor:
        n, longest = draw.randint(1, 8), draw.randint(2, 32)
        ids = torch.randint(1, 60, (n, longest))
        lengths = torch.tensor([longest] + [draw.randint(1, longest) for _ in range(n - 1)])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        labels = ids.masked_fill(mask == 0, -100) if classes is None else torch.randint(classes, (n,))
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return step


CASES: dict[str, tuple[Callable[[], nn.Module], Step]] = {
    "mlp": (torch_models.mlp, _classified(range(1, 33), 20)),
    "cnn": (torch_models.vgg, _classified(range(1, 17), 3, 16, 16)),
    "vit": (lambda: build_tiny("vit")[0], _images),
    "bert": (lambda: build_tiny("bert", "sdpa")[0], _texts(3)),
    "gpt2": (lambda: build_tiny("gpt2", "sdpa")[0], _texts(None)),
    "experts": (Experts, _classified(range(1, 17), 16)),
    "lstm": (torch_models.LSTMClassifier, _classified(range(1, 9), range(3, 11), 4)),
    "cells": (Cells, _classified(range(1, 9), range(3, 11), 4)),
}  # fmt: skip


@dataclass
class Flatness:
    """What a run has made and holds: one number after its first tenth, and one at its end.

    Attributes:
        traces, plans: how many there have been.
        late: steps after the first tenth in which one of the two grew.
        tensors, resident_mb: what is alive. python_kb: by how much Python objects have grown in between.
        cycles: tensors that only the garbage collector could free, made in the last steps.
        why: which engine ran, and why.
    """

    traces: list[int] = field(default_factory=list)
    plans: list[int] = field(default_factory=list)
    late: int = 0
    tensors: list[int] = field(default_factory=list)
    python_kb: float = 0.0
    resident_mb: list[float] = field(default_factory=list)
    cycles: int = 0
    why: str = ""

    def look(self, model: nn.Module) -> None:
        """Note what there is now."""
        gc.collect()
        found = lfpgraph.explain_wrap(model)
        self.traces.append(found.traces)
        self.plans.append(found.plans)
        self.tensors.append(_tensors())
        self.python_kb = tracemalloc.get_traced_memory()[0] / 1e3
        self.resident_mb.append(resident() / 1e6)
        self.why = str(found)


def _tensors() -> int:
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def run(name: str, engine: str, steps: int, seed: int = 0) -> Flatness:
    """Train a model for so many steps; each has sizes of its own."""
    build, step = CASES[name]
    torch.manual_seed(seed)
    draw = random.Random(seed)
    model = lfpgraph.wrap(build().train(), engine=engine)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found, made = Flatness(), (0, 0)
    try:
        for i in range(1, steps + 1):
            if i == max(steps - 5, steps // 10 + 1):
                gc.collect()
                gc.disable()
                alive = _tensors()
            step(model, draw).backward()
            optimizer.step()
            optimizer.zero_grad()
            if i > steps // 10:
                now = lfpgraph.explain_wrap(model)
                found.late += (now.traces, now.plans) != made
                made = now.traces, now.plans
            elif i == steps // 10:
                tracemalloc.start()
                found.look(model)
                made = found.traces[0], found.plans[0]
        found.cycles = _tensors() - alive
        found.look(model)
    finally:
        gc.enable()
        tracemalloc.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(CASES), metavar="MODEL", help=", ".join(CASES))
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | engine | traces | plans | tensors | Python, +kB | resident, MB | cycles |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        for engine in options.engines:
            try:
                found = run(name, engine, options.steps)
            except lfpgraph.LfpGraphError as error:
                print(f"| {name} | {engine} | {type(error).__name__}: {str(error).splitlines()[0][:100]} |" + " |" * 5)
                continue
            traces, plans, tensors = (" -> ".join(map(str, n)) for n in (found.traces, found.plans, found.tensors))
            megabytes = " -> ".join(f"{n:.0f}" for n in found.resident_mb)
            row = (
                name,
                engine,
                traces,
                f"{plans} ({found.late})",
                tensors,
                f"{found.python_kb:.0f}",
                megabytes,
                found.cycles,
            )
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
            print(f"  {found.why}", flush=True)


if __name__ == "__main__":
    main()
