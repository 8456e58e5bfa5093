"""Seconds to trace and prepare a model: `python -m benchmarks.prepare gpt2`.

Ours: the first wrapped step less a later one, with the model whole and in parts (`regional=True`). Torch's: the same for
torch.compile with the aot_eager backend, which is dynamo and AOT autograd without inductor. Prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.models import build
from benchmarks.sides import SIDES, backprop
from lfpgraph.errors import WrapError


def measure(name: str, device: str = "cpu") -> dict[str, Any]:
    """First step less second step, for both."""
    row: dict[str, Any] = {"model": name, "device": device, "prepare_s": {}, "errors": {}}
    for side in ("aot_eager", "lfp", "lfp-regional"):
        case = build(name).to(device)
        try:
            run = backprop(case, backend="aot_eager") if side == "aot_eager" else SIDES[side](case)
        except WrapError as error:  # a model without repeated blocks
            row["errors"][side] = str(error)
            continue
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        row["prepare_s"][side] = seconds[0] - seconds[1]
    base = row["prepare_s"]["aot_eager"]
    return row | {"ratio": {side: seconds / base for side, seconds in row["prepare_s"].items() if side != "aot_eager"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.device)))


if __name__ == "__main__":
    main()
