"""Every model type of transformers in small: traced, covered, one step, against autograd: `python -m benchmarks.sweep`.

Rows go to a file of JSON lines as they come, and a stopped run goes on. Models run in a worker process, which is
replaced when one takes too long or crashes. `--builder file.py:function` takes instances from elsewhere: a function of
the type's name that returns (model, keyword inputs, ...).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from .sweep_one import default_builder, measure

_CLOSE = 1e-4


def load_builder(target: str | None) -> Any:
    """The function `file.py:function`, or the library's own builder."""
    if target is None:
        return default_builder
    file, _, name = target.rpartition(":")
    sys.path.insert(0, str(Path(file).resolve().parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot load {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(file).stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def model_types() -> list[str]:
    """Every model type that transformers knows, sorted."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def _serve(builder: str | None, pipe: Connection) -> None:
    logging.getLogger("lfpgraph").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    build = load_builder(builder)
    while (name := pipe.recv()) is not None:
        pipe.send(measure(name, build))


class Worker:
    """A process that measures one model after another."""

    def __init__(self, builder: str | None) -> None:
        self.builder = builder
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.builder, other), daemon=True)
        self.process.start()
        other.close()

    def run(self, name: str, seconds: float) -> dict[str, Any]:
        """The row of a model; an error row, and a new process, where it takes too long or the process ends."""
        try:
            self.pipe.send(name)
            if self.pipe.poll(seconds):
                row: dict[str, Any] = self.pipe.recv()
                return row
            problem = f"step: more than {seconds:.0f} s"
        except (EOFError, OSError):
            problem = "step: the process crashed"
        self.process.kill()
        self.start()
        return {"type": name, "error": problem}


def table(rows: list[dict[str, Any]], builder: str) -> str:
    """docs/sweep.md."""
    built = [row for row in rows if not row.get("error", "").startswith("build")]
    traced = [row for row in built if "tracer" in row]
    covered = [row for row in traced if "nodes" in row and not row["nodes"].get("uncovered")]
    right = [row for row in traced if row.get("gradient_error", 1.0) <= _CLOSE]
    finite = [row for row in traced if row.get("finite")]
    totals = Counter[str]()
    for row in covered:
        totals.update(row["nodes"])
    bearing = sum(n for name, n in totals.items() if name != "none") or 1
    tracers = Counter(row["tracer"] for row in traced)
    lines = [
        "# Sweep over transformers",
        "",
        f"Made by `make sweep` ({time.strftime('%Y-%m-%d')}, torch {torch.__version__}, 2 cores; {builder}). Small random "
        "instances in eval mode, float32; one forward and one backward walk each.",
        "",
        "| | model types |",
        "|---|---|",
        f"| asked for | {len(rows)} |",
        f"| built and run without lfpgraph | {len(built)} |",
        f"| traced | {len(traced)} ({tracers['export']} by torch.export, {tracers['values']} by the fallback) |",
        f"| every operation that carries reward covered | {len(covered)} |",
        f"| gradient composite equal to autograd (relative {_CLOSE:g} of the largest gradient) | {len(right)} |",
        f"| LFP feedback finite | {len(finite)} |",
        "",
        f"Of {bearing} operations that carry reward {totals['derived']} are derived ({100 * totals['derived'] / bearing:.2f} %).",
        "",
        "## Misses",
        "",
        "| type | what |",
        "|---|---|",
    ]
    for row in built:
        problem = row.get("error")
        if problem is None and row["nodes"].get("uncovered"):
            problem = f"uncovered: {', '.join(row['kinds']['uncovered'])}"
        if problem is None and row["gradient_error"] > _CLOSE:
            problem = f"gradient differs from autograd's by {row['gradient_error']:.2g}"
        if problem is None and not row["finite"]:
            problem = "LFP feedback is not finite"
        if problem is not None:
            lines.append(f"| {row['type']} | {problem.replace('|', '/')} |")
    lines += [
        "",
        "## Every type",
        "",
        "| type | tracer | operations | derived | gradient error | trace s |",
        "|---|---|---|---|---|---|",
    ]
    for row in traced:
        nodes, error = row.get("nodes", {}), row.get("gradient_error")
        derived = ", ".join(row.get("kinds", {}).get("derived", [])) or "0"
        shown = "" if error is None else f"{error:.1g}"
        lines.append(
            f"| {row['type']} | {row['tracer']} | {sum(nodes.values())} | {derived} | {shown} | {row['trace_s']} |"
        )
    lost = [row["type"] for row in rows if row.get("error", "").startswith("build")]
    lines += ["", f"Not built ({len(lost)}): {', '.join(lost)}", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--builder", help="file.py:function; the library's own small instances by default")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep.jsonl"))
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a model")
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {row["type"]: row for row in map(json.loads, lines)}
    names = options.types or model_types()
    worker = Worker(options.builder)
    for name in track([n for n in names if n not in known], "sweep"):
        known[name] = worker.run(name, options.timeout)
        with options.out.open("a") as file:
            file.write(json.dumps(known[name]) + "\n")
    worker.process.kill()
    rows = [known[name] for name in names]
    if options.table is not None:
        source = (
            "instances of the library's own builder" if options.builder is None else "instances of a separate builder"
        )
        options.table.write_text(table(rows, source), encoding="utf-8")
    print("\n".join(table(rows, "").splitlines()[4:16]))


if __name__ == "__main__":
    main()
