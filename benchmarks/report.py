"""Everything at once: `make bench`. Each figure comes from a process of its own; docs/performance.md is written from them.

Rows go to docs/performance.json as they come, so that a stopped run goes on with what is missing; `--again` measures anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.models import DEPTHS, MODELS, SERIES
from benchmarks.page import draw, put
from benchmarks.peers import PEER_MODELS, PEERS
from benchmarks.sides import COMPOSITE

TIMED = ["backprop", "lfp", "lfp-min"]
COMPILED = ["backprop-compiled", "lfp-compiled"]
WEIGHED = ["backprop", "lfp", "lfp-min"]


def jobs(device: str, clock: bool) -> list[tuple[str, list[str]]]:
    """Name and command of every measurement; steps by the clock, or in processor time of one thread."""
    found: list[tuple[str, list[str]]] = []
    series = [f"{name}/{value}" for name, points in SERIES.items() for value in points]
    on = ["--device", device]
    busy = on if clock else [*on, "--busy"]
    for model in [*MODELS, *series]:
        found.append((f"step {model}", ["benchmarks.step", "--model", model, "--side", *TIMED, *busy]))
    for model in [*MODELS, *series]:
        found += [(f"memory {model} {side}", ["benchmarks.memory", model, side, *on]) for side in WEIGHED]
    for model in [*MODELS, *(f"{name}/{value}" for name, points in DEPTHS.items() for value in points)]:
        found.append((f"prepare {model}", ["benchmarks.prepare", model, *on]))
    for model in MODELS:
        found.append((f"compiled {model}", ["benchmarks.step", "--model", model, "--side", *COMPILED, *busy]))
    for model in PEER_MODELS if PEERS else ():
        found.append(
            (f"peers {model}", ["benchmarks.step", "--model", model, "--side", "backprop", "lfp", *PEERS, *busy])
        )
    return found


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """The JSON line that a measurement prints last; an error in place of it."""
    # Freed blocks go back to the system at once, so that resident memory is memory in use; for both sides alike.
    extra = {"MALLOC_MMAP_THRESHOLD_": "65536"} if "benchmarks.memory" in command[0] else {}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, timeout=seconds, env=os.environ | extra
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": f"exit status {done.returncode}: {' '.join(done.stderr.split())[-300:]}"}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="*", default=[], help="measurements whose name contains one of these")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument(
        "--clock", action="store_true", help="steps by the clock, with all threads: for a machine that rests"
    )
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument(
        "--page", type=Path, default=Path("docs/performance.md"), help="its tables, a plot and the rows beside it"
    )
    options = parser.parse_args()
    path = options.page.with_suffix(".json")
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = "the clock, all threads" if options.clock else "processor time of one thread"
    measured = f"{time.strftime('%F')}, {machine}, torch {torch.__version__}, `{COMPOSITE}`"
    todo = [
        (name, command)
        for name, command in jobs(options.device, options.clock)
        if (options.again or "error" in rows.get(name, {"error": ""}))
        and (not options.only or any(part in name for part in options.only))
    ]
    for name, command in track(todo, "bench"):
        rows[name] = {"job": name, "measured": measured} | run(command, options.timeout)
        print(rows[name], flush=True)
        path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        put(rows, options.page)
    draw(rows, options.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
