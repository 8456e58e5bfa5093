"""Seconds that a first step takes beyond a later one: `python -m benchmarks.prepare gpt2`.

With two samples of the batch: preparing does not depend on how many there are, and a step of eight seconds would be as uncertain
as what is looked for.

Ours: the default (`engine="auto"`, whose first hundred calls run live), the static engine with the model whole, and in parts
(`regional=True`). Torch's: torch.compile with the aot_eager backend, which is dynamo and AOT autograd without inductor. Each
figure is the median of three processes, in processor time of one thread (on a GPU, time by the clock); a process has
imported torch and the model's library before. Prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.models import build
from benchmarks.report import run
from benchmarks.sides import SIDES, backprop
from lfpgraph.errors import WrapError

ASKED = ("aot_eager", "lfp-auto", "lfp", "lfp-regional")


def once(name: str, side: str, device: str) -> dict[str, Any]:
    """The first step less the median of three later ones, in this process."""
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    case = build(name).first(2).to(device)
    seconds = []
    start = clock()
    try:
        step = backprop(case, backend="aot_eager") if side == "aot_eager" else SIDES[side](case)
    except WrapError as error:  # a model without repeated blocks
        return {"error": str(error)}
    for _ in range(4):
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        start = clock()
    step_s = statistics.median(seconds[1:])
    return {"seconds": seconds[0] - step_s, "step": step_s}


def measure(name: str, device: str = "cpu", times: int = 3) -> dict[str, Any]:
    """The medians of all sides; the sides take turns."""
    row: dict[str, Any] = {"model": name, "device": device, "prepare_s": {}, "step_s": {}, "errors": {}}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ASKED}
    for _ in range(times):
        for side, results in found.items():
            results.append(run(["benchmarks.prepare", name, "--side", side, "--device", device], 1200))
    for side, results in found.items():
        errors = [result["error"] for result in results if "error" in result]
        if errors:
            row["errors"][side] = errors[0]
        else:
            row["prepare_s"][side] = statistics.median(result["seconds"] for result in results)
            row["step_s"][side] = statistics.median(result["step"] for result in results)
    base = row["prepare_s"]["aot_eager"]
    return row | {"ratio": {side: seconds / base for side, seconds in row["prepare_s"].items() if side != "aot_eager"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--side", choices=ASKED, help="one figure, in this process")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(once(options.model, options.side, options.device)))
    else:
        print(json.dumps(measure(options.model, options.device, options.times)))


if __name__ == "__main__":
    main()
