"""Faults put into a copy of this package, each of which a test must catch: `python -m tools.mutants [AREA ...]`.

The faults are in `tools/faults/AREA.txt`, written like a diff with the test that catches each:

    ## the wrong sign of epsilon
    lfpgraph/numerics.py
    -    return size + z
    +    return size - z
    ? tests/test_numerics.py::test_stabilize_moves_away_from_zero

Lines that are not in the file, or in it twice, are an error, so that the list cannot rot; so is a test that is not there or
fails without the fault. Nothing here imports the package: each fault runs in a process that is forked off before.

How many of an area were caught is written to `tests/golden/faults.csv` when the area has run whole.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AREAS", "TABLE", "Fault", "copy_of_package", "faults_of", "known", "main", "put_in", "run_tests"]

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "faults"
TABLE = ROOT / "tests" / "golden" / "faults.csv"
AREAS = sorted(path.stem for path in FOLDER.glob("*.txt"))
# What lies elsewhere in the source than where it is installed.
_INSTALLED = {"rules": "lfpgraph/rules", "models_zoo": "lfpgraph/models_zoo"}
_COPIED = ("lfpgraph", *_INSTALLED, "tests", "tools", "benchmarks", "examples", "pyproject.toml")
_PRELOADED = (
    "torch._dynamo", "torch.export", "torch.onnx", "sympy", "networkx", "pytest", "onnx", "onnxruntime", "transformers",
)  # fmt: skip
# Any test, up to the first that fails; what is imported already is no cause for a warning.
_OPTIONS = ("-m", "", "-x", "-q", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_LONGEST = 180  # seconds of processor time of a fault's tests; ten times as long by the clock


@dataclass(frozen=True)
class Fault:
    """A fault: in `file` the lines `before` become `after`, and `tests` must fail."""

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def faults_of(area: str) -> list[Fault]:
    """The faults of a file."""
    found = []
    for block in (FOLDER / f"{area}.txt").read_text().split("## ")[1:]:
        what, file, *lines = block.splitlines()
        before, after, tests = ([line[1:] for line in lines if line.startswith(mark)] for mark in "-+?")
        found.append(Fault(what, file, _lines(before), _lines(after), tuple(test.strip() for test in tests)))
    return found


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def copy_of_package() -> Iterator[Path]:
    """A copy of the package and its tests, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder, ignore = Path(name), shutil.ignore_patterns("__pycache__", "rules", "models_zoo")
        for part in _COPIED:
            target = folder / _INSTALLED.get(part, part)
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, target, ignore=None if part in _INSTALLED else ignore)
            else:
                shutil.copy(ROOT / part, target)
        yield folder


@contextmanager
def put_in(fault: Fault, folder: Path) -> Iterator[None]:
    """The fault, in the copy at `folder`."""
    top, _, rest = fault.file.partition("/")
    path = folder / _INSTALLED.get(top, top) / rest
    text, times = path.read_text(), path.stat()
    if text.count(fault.before) != 1 or not fault.before or fault.before == fault.after:
        raise SystemExit(f"{fault.file} has the lines of {fault.what!r} {text.count(fault.before)} times, not once")
    path.write_text(text.replace(fault.before, fault.after))
    os.utime(path, (times.st_atime, times.st_mtime + 60))  # so that no compiled file passes for it
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, (times.st_atime, times.st_mtime))


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of the copy in a process of their own; pytest's exit code, and what it printed."""
    output = folder / "output.txt"
    child = os.fork()
    if child == 0:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (_LONGEST, _LONGEST))
        sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
            del sys.modules[name]
        import pytest

        code = 3
        try:
            code = int(pytest.main([*_OPTIONS, *tests]))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + 10 * _LONGEST
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return 124, f"no end after {10 * _LONGEST} s"
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(ended[1]), output.read_text()


def preload() -> None:
    """Import what the tests use, once; whatever of it is not installed they skip."""
    import importlib

    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    import torch

    torch.set_num_threads(1)


def known() -> dict[str, tuple[int, int]]:
    """Of each area that has run, how many faults were put in and how many were caught."""
    with TABLE.open(newline="") as file:
        return {area: (int(count), int(caught)) for area, count, caught in list(csv.reader(file))[1:]}


def _note(area: str, count: int, caught: int) -> None:
    found = {**known(), area: (count, caught)}
    rows = [[name, *found[name]] for name in AREAS if name in found]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["area", "faults", "caught"], *rows])


def main(areas: Sequence[str], word: str = "") -> tuple[int, int]:
    """Put in the faults of some areas one by one; how many there are, and how many were caught.

    Args:
        word: of what a fault is called; "" takes all of them.
    """
    preload()
    count = held = 0
    with copy_of_package() as folder:
        for area in areas:
            faults = [fault for fault in faults_of(area) if word in fault.what]
            tests = dict.fromkeys(test for fault in faults for test in fault.tests)
            code, said = run_tests(folder, list(tests)) if tests else (0, "")
            if code:
                raise SystemExit(f"{area}: the tests fail without a fault\n{said[-3000:]}")
            caught = 0
            for fault in faults:
                with put_in(fault, folder):
                    code, said = run_tests(folder, fault.tests)
                caught += code == 1
                if code != 1:
                    print(f"{area}: SURVIVED ({code}): {fault.what} ({fault.file})\n{said[-1000:]}", flush=True)
            print(f"{area}: {caught} of {len(faults)} faults caught", flush=True)
            if not word:
                _note(area, len(faults), caught)
            count, held = count + len(faults), held + caught
    return count, held


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", help=f"of {', '.join(AREAS)}; all by default")
    parser.add_argument("-k", default="", metavar="WORD", help="only faults that are called something with this in it")
    given = parser.parse_args()
    total, held = main(given.areas or AREAS, given.k)
    raise SystemExit(held < total)
