"""What the live engine costs over backprop, and what the static engine's guards cost: `python -m benchmarks.live`.

Time: forward and backward in processor time of one thread, each model in a process of its own; copies of it take turns,
figures are medians. Memory: the peak of a step, each side in a process of its own (`benchmarks.memory`). With `--page FILE`
the section "Live engine" of a Markdown file is written anew after each row, up to the next heading: what is written by hand
has a heading of its own. The rows are kept in `live.json` beside it, and not measured again as long as the library is the
same: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import lfpgraph
from benchmarks.models import build
from benchmarks.report import run
from benchmarks.sides import COMPOSITE
from lfpgraph.wrapping.calls import wrapping_of

COMPOSITES = ["lfp", "lfp-epsilon"]
MODELS = ["mlp-64", "mlp-784", "digits-cnn", "digits-vit", "resnet18", "vit-s16", "bert-base", "gpt2"]
GUARDED = ["mlp-64", "mlp-784", "vit-s16"]
TITLE = "## Live engine"
LARGE = MODELS[4:]  # of which memory is measured; that of the others moves by itself
WARM_UP = 6  # the live engine keeps no more than it has to from its fifth step on


def step_times(name: str, budget: float) -> dict[str, Any]:
    """Median seconds of a step of backprop and of the live engine under each composite, and of `lfp`'s first step."""
    case = build(name)
    sides = {"backprop": copy.deepcopy(case.model)}
    for composite in COMPOSITES:
        sides[composite] = lfpgraph.wrap(copy.deepcopy(case.model), composite, engine="live")

    def step(side: str) -> float:
        model = sides[side]
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        case.loss(model).backward()  # type: ignore[no-untyped-call]
        return time.process_time() - start

    first = {side: step(side) for side in sides}
    for i in range(WARM_UP):
        once = sum(step(side) for side in sides if side != "backprop" or i > WARM_UP - 3)
    rounds = max(5, min(500, int(budget / once)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            seconds[side].append(step(side))
    row: dict[str, Any] = {side: statistics.median(values) for side, values in seconds.items()}
    firsts = {"first": first["lfp"] / row["lfp"], "first_backprop": first["backprop"] / row["backprop"]}
    return {"model": name, "rounds": rounds, **firsts, **row}


def peaks(name: str) -> dict[str, Any]:
    """Peak bytes of a step of backprop and of the live engine."""
    sides = (("backprop_peak", "backprop"), ("live_peak", "lfp-live"))
    return {key: run(["benchmarks.memory", name, side], 1200).get("peak") for key, side in sides}


def guard_times(name: str) -> dict[str, Any]:
    """Median seconds of the guard's check before a static call, and of the step that it belongs to."""
    case = build(name)
    model = lfpgraph.wrap(case.model, COMPOSITE, engine="static")
    wrapping = wrapping_of(model)
    assert wrapping is not None
    seconds: list[float] = []
    for _ in range(6):
        start = time.process_time()
        case.loss(model).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - start)
        model.zero_grad(set_to_none=True)
    programs = wrapping.static.programs
    entry = next(iter(programs), None)
    if entry is None:
        raise RuntimeError(f"{name} does not run statically: {lfpgraph.explain_wrap(model)}")
    checks: list[float] = []
    gc.disable()
    for _ in range(200):
        start = time.process_time()
        changed = programs.changed(entry)
        checks.append(time.process_time() - start)
        assert changed is None, changed
    gc.enable()
    return {"model": name, "guard": statistics.median(checks), "step": statistics.median(seconds[-4:])}


def section(rows: list[dict[str, Any]], guards: list[dict[str, Any]]) -> str:
    """The section of the page."""
    lines = [
        TITLE,
        "",
        f"Made by `python -m benchmarks.live --page docs/performance.md` (one thread, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; float32, `engine='live'`). A step is forward and backward, in processor "
        "time; each model has a process of its own, in which the sides take turns, each with a copy of its own, and figures "
        "are medians. First: the first step of backprop, and then of `lfp`, over a later one. "
        f"Peak (`{COMPOSITE}`): how far resident memory rises during a step, gradients included, each "
        "side in a process of its own.",
        "",
        "| model | backprop ms | `lfp` ms | ratio | `lfp-epsilon` ms | ratio | first | of `lfp` "
        "| peak of backprop MB | live MB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, peak = row.get("backprop_peak"), row.get("live_peak")
        known = before and peak and before > 16e6  # less than that moves by itself
        memory = f"{before / 1e6:.0f} | {peak / 1e6:.0f} | {peak / before:.2f} |" if known else "| | |"
        steps = [f"{row[side] * 1e3:.2f} | {row[side] / row['backprop']:.2f}" for side in COMPOSITES]
        lines.append(
            f"| {row['model']} | {row['backprop'] * 1e3:.2f} | {' | '.join(steps)} "
            f"| {row['first_backprop']:.2f} | {row['first']:.2f} | {memory}"
        )
    lines += [
        "",
        "The guards of `engine='auto'`: the look, before each static call, at all that the traced run has read.",
        "",
        "| model | guard µs | share of a step |",
        "|---|---|---|",
    ]
    lines += [f"| {g['model']} | {g['guard'] * 1e6:.0f} | {100 * g['guard'] / g['step']:.2f} % |" for g in guards]
    return "\n".join(lines) + "\n"


def version() -> str:
    """Stands for the library as it is, and for torch."""
    files = sorted(Path(lfpgraph.__file__).parent.rglob("*.py"))
    found = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    return f"{found}, torch {torch.__version__}"


def write(page: Path, known: dict[str, Any]) -> None:
    """Write the rows that are known, beside the page and on it."""
    page.with_name("live.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    rows = [known["rows"][name] for name in MODELS if name in known["rows"]]
    guards = [known["guards"][name] for name in GUARDED if name in known["guards"]]
    before, _, rest = page.read_text(encoding="utf-8").partition(TITLE)
    after = "".join(rest.partition("\n## ")[1:])
    page.write_text(f"{before.rstrip()}\n\n{section(rows, guards)}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--guarded", nargs="*", default=GUARDED, choices=MODELS)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for the steps of one model")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--one", nargs=2, metavar=("KIND", "MODEL"), help='"rows" or "guards" of a model, in this process'
    )
    parser.add_argument("--page", type=Path, help="a Markdown file whose section is written anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        kind, name = options.one
        print(json.dumps(guard_times(name) if kind == "guards" else step_times(name, options.budget)))
        return
    known: dict[str, Any] = {"version": version(), "rows": {}, "guards": {}}
    kept = options.page.with_name("live.json") if options.page is not None else None
    if kept is not None and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        known = before if before["version"] == known["version"] else known
    jobs = [("guards", name) for name in options.guarded] + [("rows", name) for name in options.model]
    for kind, name in jobs:
        if name not in known[kind]:
            row = run(["benchmarks.live", "--one", kind, name, "--budget", str(options.budget)], 1200)
            if "error" in row:
                raise SystemExit(f"{kind} of {name}: {row['error']}")
            memory = {} if kind == "guards" or options.no_memory or name not in LARGE else peaks(name)
            known[kind][name] = row | memory
            if options.page is not None:
                write(options.page, known)
        print(json.dumps(known[kind][name]), flush=True)
    print(section(list(known["rows"].values()), list(known["guards"].values())))


if __name__ == "__main__":
    main()
