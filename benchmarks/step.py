"""Time of one training step, all sides interleaved in one run: `python -m benchmarks.step --model resnet18 gpt2`.

A step is forward, backward and plain SGD, of each side on a copy of its own. After the warm-up the sides take turns; figures
are medians. The first step of each side, which traces or compiles, is timed apart. Prints a line to read and a JSON line for
each model.
"""

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

from benchmarks.models import MODELS, Case, build
from benchmarks.sides import SIDES
from lfpgraph.errors import one_line

WARM_UP = 3
SHARED = 300_000_000  # from so many parameters on, the sides share them, since memory would not hold a copy for each


def _now(device: str, busy: bool) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if busy else time.perf_counter()


def measure(
    name: str, sides: list[str], repeats: int, device: str = "cpu", budget: float = 40.0, busy: bool = False
) -> dict[str, Any]:
    """Median seconds of a step of each side, and of its first step.

    Args:
        name: see `benchmarks.models.build`.
        repeats: steps of each side; fewer, at least 5, where they would take longer than `budget` seconds in all.
        busy: time of the processor, not by the clock, since others use the machine as well.
    """
    case = build(name).to(device)
    shared = sum(p.numel() for p in case.model.parameters()) >= SHARED
    common = _optimizer(case)
    row: dict[str, Any] = {"model": name, "device": device, "notes": case.notes, "first_s": {}, "errors": {}}
    running: dict[str, Callable[[], None]] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}

    def step(side: str) -> float:
        start = _now(device, busy)
        optimizers[side].zero_grad(set_to_none=True)
        running[side]()
        optimizers[side].step()
        return _now(device, busy) - start

    for side in sides:
        try:
            own = case if shared else copy.deepcopy(case)
            optimizers[side] = common if shared else _optimizer(own)
            running[side] = SIDES[side](own)
            row["first_s"][side] = step(side)
        except Exception as error:
            running.pop(side, None)
            row["errors"][side] = f"{type(error).__name__}: {one_line(error)}"
    if not running:
        return row | {"rounds": 0, "step_s": {}, "ratio": {}}
    for _ in range(WARM_UP - 1):
        once = sum(step(side) for side in running)
    rounds = max(5, min(repeats, int(budget / once)))
    seconds: dict[str, list[float]] = {side: [] for side in running}
    for _ in range(rounds):
        for side in running:
            seconds[side].append(step(side))
    row["rounds"] = rounds
    row["step_s"] = {side: statistics.median(values) for side, values in seconds.items()}
    if device == "cuda":
        row["peak"] = {side: _peak(optimizers[side], run) for side, run in running.items()}
    row["ratio"] = {
        side: statistics.median(a / b for a, b in zip(values, seconds[_base(side)]))
        for side, values in seconds.items()
        if side != _base(side) and _base(side) in seconds
    }
    return row


def _optimizer(case: Case) -> torch.optim.Optimizer:
    parameters = list(case.model.parameters()) + list(case.twin.parameters() if case.twin else [])
    return torch.optim.SGD(parameters, lr=1e-7)


def _peak(optimizer: torch.optim.Optimizer, run: Callable[[], None]) -> int:
    """Bytes that a step takes on the GPU at most, over what is there before it."""
    optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def _base(side: str) -> str:
    """What a side is held against."""
    return "backprop-compiled" if side == "lfp-compiled" else "backprop"


def describe(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    parts = [f"{row['model']:16s}"]
    for side, value in row["step_s"].items():
        ratio = f" ({row['ratio'][side]:.3f})" if side in row["ratio"] else ""
        parts.append(f"{side} {value * 1e3:.1f} ms{ratio}")
    parts += [f"{side}: {error}" for side, error in row["errors"].items()]
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", nargs="*", default=list(MODELS), help="names, or series/value; all models by default"
    )
    parser.add_argument("--side", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--busy", action="store_true", help="processor time of one thread: others use the machine too")
    options = parser.parse_args()
    if options.busy:
        torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {time.strftime('%F')}")
    for name in options.model:
        row = measure(name, options.side, options.repeats, options.device, busy=options.busy)
        print(describe(row), flush=True)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
