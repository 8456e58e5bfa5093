"""Time of one training step, LFP against backprop, interleaved in one run: `python -m benchmarks.step --model resnet18`."""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from benchmarks.models import MODELS


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    out = model(x)
    loss = F.cross_entropy(out if isinstance(out, Tensor) else out.logits, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def measure(name: str, composite: str, repeats: int, compile: bool) -> dict[str, Any]:
    """Median seconds of a backprop step and of a feedback step, alternating, after three warm-up steps of each."""
    torch.manual_seed(0)
    build: Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]] = MODELS[name]
    model, batch = build()
    twin = copy.deepcopy(model)
    start = time.perf_counter()
    lfpgraph.wrap(twin, composite, compile=compile)
    _step(twin, torch.optim.SGD(twin.parameters(), lr=0.0), batch)
    prepare = time.perf_counter() - start
    if compile:
        model = torch.compile(model)  # type: ignore[assignment]
    runs = {"backprop": model, "feedback": twin}
    optimizers = {key: torch.optim.SGD(m.parameters(), lr=1e-6) for key, m in runs.items()}
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for i in range(repeats + 3):
        for key, m in runs.items():
            start = time.perf_counter()
            _step(m, optimizers[key], batch)
            if i >= 3:
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ratio = statistics.median(f / b for f, b in zip(seconds["feedback"], seconds["backprop"]))
    return {
        "model": name,
        "composite": composite,
        "compiled": compile,
        "prepare_s": prepare,
        **{f"{key}_s": value for key, value in medians.items()},
        "ratio": medians["feedback"] / medians["backprop"],
        "ratio_of_pairs": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--composite", default="lfp-epsilon")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    )
    rows = []
    for name in options.model:
        row = measure(name, options.composite, options.repeats, options.compile)
        rows.append(row)
        print(
            f"{name:14s} {row['composite']:12s} backprop {row['backprop_s'] * 1e3:8.1f} ms  feedback "
            f"{row['feedback_s'] * 1e3:8.1f} ms  ratio {row['ratio']:.3f} (of pairs {row['ratio_of_pairs']:.3f})  "
            f"prepare {row['prepare_s']:.1f} s",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
