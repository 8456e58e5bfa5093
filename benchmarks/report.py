"""Everything at once: `make bench`. Each figure comes from a process of its own; docs/performance.md is written from them.

Rows go to runs/bench.jsonl as they come; a stopped run goes on, `--again` forgets them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.models import DEPTHS, MODELS, SERIES
from benchmarks.page import draw, page
from benchmarks.sides import SIDES

TIMED = ["backprop", "lfp", "lfp-min", *(["lfprop"] if "lfprop" in SIDES else [])]
COMPILED = ["backprop-compiled", "lfp-compiled"]
WEIGHED = ["backprop", "lfp", "lfp-min"]


def jobs(device: str) -> list[tuple[str, list[str]]]:
    """Name and command of every measurement."""
    found: list[tuple[str, list[str]]] = []
    series = [f"{name}/{value}" for name, points in SERIES.items() for value in points]
    on = ["--device", device]
    for model in [*MODELS, *series]:
        found.append((f"step {model}", ["benchmarks.step", "--model", model, "--side", *TIMED, *on]))
    for model in [*MODELS, *series]:
        found += [(f"memory {model} {side}", ["benchmarks.memory", model, side, *on]) for side in WEIGHED]
    for model in [*MODELS, *(f"{name}/{value}" for name, points in DEPTHS.items() for value in points)]:
        found.append((f"prepare {model}", ["benchmarks.prepare", model, *on]))
    for model in MODELS:
        found.append((f"compiled {model}", ["benchmarks.step", "--model", model, "--side", *COMPILED, *on]))
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
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.jsonl"))
    parser.add_argument("--page", type=Path, help="write the Markdown page here, and a plot and the JSON beside it")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() and not options.again else []
    rows = {row["job"]: row for row in map(json.loads, lines)}
    if options.again:
        options.out.unlink(missing_ok=True)
    todo = [(name, command) for name, command in jobs(options.device) if name not in rows]
    if options.only:
        todo = [job for job in todo if any(part in job[0] for part in options.only)]
    for name, command in track(todo, "bench"):
        rows[name] = {"job": name} | run(command, options.timeout)
        print(rows[name], flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
    if options.page is not None:
        machine = {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU",
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        old = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        live = "".join(old.partition("\n## Live engine")[1:])  # by `benchmarks.live`
        options.page.write_text(page(rows, machine) + live, encoding="utf-8")
        options.page.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
        draw(rows, options.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
