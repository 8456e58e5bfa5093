"""Every model type of transformers in small: traced, covered, one step, against autograd: `python -m benchmarks.sweep`.

Rows go to a file of JSON lines as they come, and a stopped run goes on; `--again` measures the misses anew. Models run
in worker processes, which are replaced when one takes too long or crashes. `--builder file.py:function` takes instances
from elsewhere: a function of the type's name that returns (model, keyword inputs, ...).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.progress import track

from .sweep_one import default_builder, measure
from .sweep_table import miss, summary, table

Measure = Callable[[str, Any], dict[str, Any]]  # a model type and a builder, to a row


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


def _serve(builder: str | None, pipe: Connection, measure: Measure) -> None:
    logging.getLogger("lfpgraph").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    build = load_builder(builder)
    while (name := pipe.recv()) is not None:
        pipe.send(measure(name, build))


class Worker:
    """A process that measures one model after another."""

    def __init__(self, builder: str | None, measure: Measure) -> None:
        self.builder, self.measure = builder, measure
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.builder, other, self.measure), daemon=True)
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


def sweep(
    names: list[str], out: Path, builder: str | None, jobs: int, seconds: float, measure: Measure = measure
) -> dict[str, dict[str, Any]]:
    """Measure the types, a row to the file as each is done."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker(builder, measure) for _ in range(min(jobs, len(names)))]
    for worker in workers:
        idle.put(worker)

    def one(name: str) -> dict[str, Any]:
        worker = idle.get()
        try:
            return {**worker.run(name, seconds), "date": time.strftime("%Y-%m-%d")}
        finally:
            idle.put(worker)

    rows: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(jobs) as pool, out.open("a") as file:
        for done in track(as_completed([pool.submit(one, name) for name in names]), "sweep", total=len(names)):
            row = done.result()
            rows[row["type"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    for worker in workers:
        worker.process.kill()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--builder", help="file.py:function; the library's own small instances by default")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep.jsonl"), help="rows; a type found here is done")
    parser.add_argument("--again", action="store_true", help="measure the types found there with a miss anew")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a model")
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {row["type"]: row for row in map(json.loads, lines)}
    names = options.types or model_types()
    todo = [name for name in names if name not in known or (options.again and miss(known[name]) is not None)]
    known |= sweep(todo, options.out, options.builder, options.jobs, options.timeout)
    rows = [known[name] for name in names]
    if options.table is not None:
        own = options.builder is None
        source = "instances of the library's own builder" if own else "instances of a builder given with --builder"
        options.table.write_text(table(rows, source), encoding="utf-8")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
