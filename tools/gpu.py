"""What holds on a GPU: `python -m tools.gpu --json gpu.json` steps and weighs models, then runs the GPU tests.

One JSON: versions, the device, a row for each model (time of a step and peak memory, all sides in one process), the count of
tests and what failed. It needs torch, transformers and pytest, and keeps to a number of minutes: what did not fit is named.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tools.pages import put_table

ROOT = Path(__file__).parents[1]
SIDES = ("backprop", "lfp", "lfp-live", "backprop-compiled", "lfp-compiled")
MODELS = (
    "lstm", "llama-1b", "bert-large-batch", "resnet18", "resnet50-large", "resnet50-large-bf16", "vit-s16-large-bf16",
    "gpt2-large", "mlp", "vit-s16-large", "gpt2-large-bf16",
)  # fmt: skip
COMPILED = ("vit-s16-large", "gpt2-large-bf16", "mlp")  # compiling takes up to a minute


def _python(arguments: list[str], seconds: float) -> str:
    """Run a module of this repository; what it printed, up to the time limit."""
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1))
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        out, err = (x.decode() if isinstance(x, bytes) else x or "" for x in (late.stdout, late.stderr))
        err += "\ntoo late"
    if err.strip():
        print(err[-2000:], flush=True)
    return out


def _rows(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def steps(device: str, seconds: float, models: Sequence[str] = MODELS) -> dict[str, Any]:
    """A row for each of the models that fits into the time."""
    end, found = time.time() + seconds, []
    for model in models:
        sides = SIDES if model in COMPILED else SIDES[:3]
        arguments = ["-m", "benchmarks.step", "--model", model, "--device", device, "--repeats", "15", "--side", *sides]
        rows = _rows(_python(arguments, min(end - time.time(), 120)))
        found += rows
        print(model, json.dumps(rows), flush=True)
        if time.time() > end:
            break
    measured = {row["model"] for row in found}
    return {"rows": found, "not_measured": [model for model in models if model not in measured]}


def tests(seconds: float, processes: int, chosen: list[str]) -> dict[str, Any]:
    """The tests marked `gpu`: how many passed, and the others by name and message."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        arguments = ["-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", "-n", str(processes), *chosen]
        printed = _python([*arguments, "-W", "default", "--tb=short"], seconds)
        print(printed[-6000:], flush=True)
        if not report.exists():
            return {"finished": False, "printed": printed[-4000:]}
        cases = list(xml.parse(report).getroot().iter("testcase"))
    others: dict[str, dict[str, str]] = {"failure": {}, "error": {}, "skipped": {}}
    for case in cases:
        for child in case:
            if child.tag in others:
                name = f"{case.get('classname')}::{case.get('name')}"
                others[child.tag][name] = (child.get("message") or "")[:300] + "\n" + (child.text or "")[-6000:]
    bad = {name for kind in others.values() for name in kind}
    return {"finished": True, "tests": len(cases), "passed": len(cases) - len(bad), **others}


def versions() -> dict[str, str]:
    """Of what matters here."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "triton", "accelerate", "peft", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def put(found: dict[str, Any], page: Path) -> None:
    """Write a run's tables into the page."""
    run, rows = found.get("tests", {}), found.get("steps", {}).get("rows", [])
    kinds = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        "| | |",
        "| --- | --- |",
        f"| day | {found['date']} |",
        f"| device | {found['device']} |",
        f"| versions | {kinds} |",
    ]
    if run:
        bad = sorted({*run.get("failure", ()), *run.get("error", ())})
        skipped = len(run.get("skipped", ()))
        lines.append(f"| tests | {run.get('passed', 0)} of {run.get('tests', '?')} passed, {skipped} skipped |")
        lines += [f"| failed | `{name}` |" for name in bad]
    put_table(page, "run", lines)
    table = ["| model | side | step (ms) | over backprop | peak (GB) |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        for side in SIDES:
            if side in row["errors"]:
                table.append(f"| {row['model']} | {side} | {row['errors'][side].replace('|', '/')[:160]} | | |")
            elif side in row["step_s"]:
                ratio = f"{row['ratio'][side]:.2f}" if side in row["ratio"] else ""
                peak = f"{row['peak'][side] / 1e9:.1f}" if side in row.get("peak", {}) else ""
                table.append(f"| {row['model']} | {side} | {row['step_s'][side] * 1e3:.1f} | {ratio} | {peak} |")
    missed = found.get("steps", {}).get("not_measured", [])
    put_table(
        page, "steps", [*table, *([f"| {', '.join(missed)} | | not measured in the time | | |"] if missed else [])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="gpu.json")
    parser.add_argument("--page", help="docs/gpu.md")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--processes", type=int, default=8, help="that run tests")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try this out")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, help="whose steps are measured")
    parser.add_argument("--only", choices=["steps", "tests"])
    parser.add_argument("--tests", nargs="*", default=["tests/gpu", "tests/test_randomness.py"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no GPU that torch can use")
    start = time.time()
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    found: dict[str, Any] = {"date": time.strftime("%F"), "device": name, "versions": versions()}
    path = Path(options.json)

    def left() -> float:
        return options.minutes * 60 - (time.time() - start)

    if options.only != "steps":
        found["tests"] = tests(left() / 2 if options.only is None else left(), options.processes, options.tests)
        path.write_text(json.dumps(found, indent=1) + "\n")
    if options.only != "tests":
        found["steps"] = steps(options.device, left(), options.models)
    path.write_text(json.dumps(found | {"seconds": round(time.time() - start)}, indent=1) + "\n")
    if options.page:
        put(found, Path(options.page))
    summary = found.get("tests", {})
    print(f"{name}: {summary.get('passed')} of {summary.get('tests')} tests passed; written to {path}")
    if summary and (not summary["finished"] or summary["failure"] or summary["error"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
