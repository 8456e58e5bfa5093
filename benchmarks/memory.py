"""Memory of one training step of one side, in a process of its own: `python -m benchmarks.memory vit-s16 lfp`.

Prints a JSON line: bytes that autograd or the feedback program keeps from forward to backward (parameters and inputs
apart), and the peak of resident memory during a step over what is resident before it (CPU) or of allocated memory (CUDA).
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
from typing import Any

import torch

from benchmarks.kept import kept_bytes
from benchmarks.models import build
from benchmarks.resident import peak_growth
from benchmarks.sides import SIDES


def measure(name: str, side: str, device: str = "cpu", steps: int = 3) -> dict[str, Any]:
    """Kept bytes and peak bytes of a step, gradients and forward's results included, parameters not."""
    case = build(name).to(device)
    run = SIDES[side](case)
    parameters = [*case.model.parameters(), *(case.twin.parameters() if case.twin else [])]
    given = list(case.inputs.values()) if isinstance(case.inputs, dict) else [case.inputs]
    known = [*parameters, *case.model.buffers(), *given, case.labels]

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None
        gc.collect()

    row: dict[str, Any] = {"model": name, "side": side, "device": device}
    for _ in range(2):
        run()
        clear()
    for thread in threading.enumerate():
        if thread.name == "lfpgraph compiles":  # steps are run by torch's operations until it ends
            thread.join()
    run()
    clear()
    row["saved"] = kept_bytes(run, known)
    clear()

    def several() -> None:
        for _ in range(steps):
            run()
            clear()

    if device == "cpu":
        return row | {"peak": peak_growth(several)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    several()
    return row | {"peak": torch.cuda.max_memory_allocated() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("side", choices=list(SIDES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.side, options.device)))


if __name__ == "__main__":
    main()
