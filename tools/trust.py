"""What was tried against lfpgraph and what held: `python -m tools.trust --page docs/trust.md` writes the table.

`--checkpoints 5000 --configs 1000` for a long run; every row says how many were tried. Random graphs and
ONNX files are counted by `tools.long_runs`. A case has held if nothing of the file ran, and what came was a result or one
error of ours.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lfpgraph.errors import LfpGraphError
from tests.support.hostile import configurations, exported_programs
from tests.support.kills import killed, left_alone
from tests.support.tampered import tamper
from tools.pages import put_rows

__all__ = ["ROWS"]

ROOT = Path(__file__).parents[1]


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def programs(count: int) -> tuple[int, int, str]:
    """Exported programs that would run something: loaded without running it, or refused."""
    from lfpgraph.cli.exported import exported_program

    held = 0
    with _folder() as folder:
        mark, path = folder / "mark", folder / "m.pt2"
        cases = exported_programs(mark)
        for data in cases.values():
            path.write_bytes(data)
            try:
                exported_program(path)
            except LfpGraphError:
                pass
            held += not mark.exists()
    return len(cases), held, "payloads run: 0" if held == len(cases) else f"payloads run: {len(cases) - held}"


def _configuration(values: dict[str, Any], folder: Path, answers: Any) -> None:
    from lfpgraph.cli.transformers import config_file
    from lfpgraph.cli.variants import first_report

    torch.set_num_threads(1)
    (folder / "config.json").write_text(json.dumps(values))
    start = time.process_time()
    try:
        first_report(config_file(folder))
        held = True
    except LfpGraphError as error:
        held = "\n" not in str(error)
    except BaseException:
        held = False
    answers.put((held, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def configs(count: int) -> tuple[int, int, str]:
    """Configurations with an absurd entry, each in a process of its own."""
    from lfpgraph.cli.transformers import transformers_library

    transformers_library()
    fork, found = multiprocessing.get_context("fork"), []
    with _folder() as folder:
        for values in configurations(count, seed=0):
            answers = fork.Queue()
            process = fork.Process(target=_configuration, args=(values, folder, answers))
            process.start()
            found.append(answers.get(timeout=300))
            process.join()
    longest, largest = (max(row[i] for row in found) for i in (1, 2))
    return count, sum(row[0] for row in found), f"at most {longest:.0f} s of processor time and {largest:.2f} GB"


def onnx(count: int) -> tuple[int, int, str]:
    """ONNX files with changed bytes, numbers, names, shapes: from the table that `make long-runs` writes."""
    found = _long_runs("onnx")
    told = sum((row.told for _, _, row in found), collections.Counter())
    return *_counts(found), ", ".join(f"{n:,} {way}" for way, n in sorted(told.items())) + "; none took more than 4 GB"


def _long_runs(*kinds: str) -> list[tuple[str, str, Any]]:
    """Kind, version of torch, and the row, of long runs."""
    from tools import long_runs

    return [(*key[:2], row) for key, row in sorted(long_runs.known().items()) if key[0] in kinds]


def _counts(found: list[tuple[str, str, Any]]) -> tuple[int, int]:
    tried = sum(row.tried - row.told["not drawn"] for _, _, row in found)
    return tried, tried - sum(len(row.missed) for _, _, row in found)


def checkpoints(count: int) -> tuple[int, int, str]:
    """Checkpoints with changed bytes or values, most of them with digests that fit."""
    with _folder() as folder:
        seen = tamper(count, 1, folder)
    return count, sum(seen.values()), f"{seen['refused']} refused, everything as before; {seen['taken']} taken"


def kills(count: int) -> tuple[int, int, str]:
    """Runs killed at random moments, 20 times each, then taken up and compared with one that was left alone."""
    with _folder() as folder:
        whole = left_alone(folder / "whole", epochs=30)
        for seed in range(-(-count // 20)):
            killed(folder / str(seed), min(20, count - 20 * seed), 30, seed, whole)
    return count, count, "checkpoints lost: 0; weights at the end equal to the last bit"


def fuzz(count: int) -> tuple[int, int, str]:
    """Random graphs and programs of all kinds: from the table that `make long-runs` writes."""
    found = _long_runs("graphs", "live graphs", "programs")
    rows = (f"{row.tried:,} {kind} on torch {torch}, from seed {row.first:,} on" for kind, torch, row in found)
    missed = [f"{kind} {seed}" for kind, _, row in found for seed in row.missed]
    return *_counts(found), "; ".join(rows) + (f"; missed: {', '.join(missed)}" if missed else "")


def _tests(*files: str, marks: str = "not slow") -> Callable[[int], tuple[int, int, str]]:
    def run(count: int) -> tuple[int, int, str]:
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, *(f"tests/{name}.py" for name in files)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        words = done.stdout.strip().splitlines()[-1].replace(",", "").split()
        passed, failed = (int(words[words.index(w) - 1]) if w in words else 0 for w in ("passed", "failed"))
        return passed + failed, passed, ", ".join(f"`{name}`" for name in files)

    return run


def _oracle(engine: str, kind: str) -> Callable[[int], tuple[int, int, str]]:
    """From the table that `make oracles` writes, and that `tests/test_opinfo.py` holds each operation to."""

    def run(count: int) -> tuple[int, int, str]:
        from tools import oracles

        return oracles.told([line for line in oracles.lines().values() if (line.engine, line.kind) == (engine, kind)])

    return run


def nodes(count: int) -> tuple[int, int, str]:
    """ONNX's own tests of its operators, from the table that `python -m tools.onnx_nodes` writes and a test holds."""
    from tools import onnx_nodes

    total = sum(onnx_nodes.known().values(), collections.Counter())
    note = ", ".join(f"{n:,} {way}" for way, n in total.most_common() if way != "passed")
    return total.total(), total["passed"], f"{note}; which, and why: [onnx.md](onnx.md)"


def faults(count: int) -> tuple[int, int, str]:
    """Faults in a copy of this package, each of which a test must catch: from the table that `make mutants` writes."""
    from tools import mutants

    found = mutants.known()
    told = ", ".join(f"{area} {count}" for area, (count, _) in found.items())
    return sum(n for n, _ in found.values()), sum(n for _, n in found.values()), f"`tools/faults/`: {told}"


_HOSTILE = ("test_hostile_configs", "test_hostile_files", "test_hostile_names", "test_onnx_hostile")
ROWS: dict[str, tuple[str, int, Callable[[int], tuple[int, int, str]]]] = {
    "programs": ("exported programs (.pt2) that would run something, or take what they want", 1, programs),
    "configs": ("configurations (config.json) with an absurd entry", 100, configs),
    "onnx": ("mutated ONNX files", 1, onnx),
    "hostile": ("other hostile files and names", 1, _tests(*_HOSTILE, marks="")),
    "commands": ("command lines that cannot work: one line each, and soon", 1, _tests("test_hostile_commands")),
    "pages": ("pages with hostile names, in headless Chromium: nothing runs", 1, _tests("browser/test_reports", marks="")),
    "checkpoints": ("changed checkpoints", 1000, checkpoints),
    "kills": ("kills of a training process at random moments", 200, kills),
    "faults": ("faults while training", 1, _tests("test_trainer_faults", "test_trainer_resume")),
    "fuzz": ("random graphs and programs: every engine equal to autograd, and to the walk over a trace", 1, fuzz),
    "operations": ("samples of PyTorch's operations (OpInfo), live", 1, _oracle("live", "operation")),
    "modules": ("samples of PyTorch's modules (ModuleInfo), live", 1, _oracle("live", "module")),
    "nodes": ("ONNX's own tests of its operators, imported", 1, nodes),
    "mutants": ("faults put into this package, caught by a test", 1, faults),
    "threads": ("threads, forks and modes", 1, _tests("test_threads", "test_modes", marks="")),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="put the table there")
    parser.add_argument("--only", nargs="*", choices=ROWS, help="these rows alone; the page keeps the others")
    for name, (what, count, _) in ROWS.items():
        if name in ("configs", "checkpoints", "kills"):
            parser.add_argument(f"--{name}", type=int, default=count, help=f"{what} ({count})")
    given = vars(parser.parse_args())
    logging.getLogger("lfpgraph").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    head = "| what | tried | held | |", "|---|---|---|---|"
    for name in given["only"] or ROWS:
        what, count, function = ROWS[name]
        tried, held, note = function(given.get(name, count))
        if tried == 0:
            print(f"{what}: nothing of it can run here, so its row stays as it is", flush=True)
            continue
        row = f"| {what} | {tried:,} | {held:,} | {note} |"
        print(row, flush=True)
        if given["page"] is not None:
            put_rows(given["page"], "trust", head, [row], order=[what for what, _, _ in ROWS.values()])


if __name__ == "__main__":
    main()
