"""Long runs of random cases, a hundred at a time: `python -m tools.long_runs [KIND ...] --seconds 3600 --processes 2`.

`tests/golden/long_runs.csv` says which seeds have run, on which torch, and which of them failed; a run goes on behind the
last seed of its kind, so it may be stopped at any moment. `--again` runs those that failed once more. What is counted stays
counted when the code changes: the table tells how much was tried so far, a failure is told the moment it is found.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import csv
import gc
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
from torch.fx import _lazy_graph_module
from torch.utils._traceback import CapturedTraceback

__all__ = ["KINDS", "TABLE", "Row", "known", "run"]

TABLE = Path(__file__).parents[1] / "tests" / "golden" / "long_runs.csv"
BLOCK = 100
_LONGEST = 120  # seconds of processor time of one case
_MOST = (
    4 * 2**20
)  # kilobytes that a process may come to hold by a file from elsewhere: a file may ask for large tensors


@dataclass
class Row:
    """The seeds of a kind that have run on one torch: `tried` of them from `first` on.

    Attributes:
        missed: the seeds that failed.
        told: how many went which way, where there are several that are right.
    """

    first: int
    tried: int = 0
    missed: list[int] = field(default_factory=list)
    told: collections.Counter[str] = field(default_factory=collections.Counter)


def _graph(*seeds: int) -> str:
    from tests.test_fuzz import check

    check(*seeds)
    return ""


def _live_graph(*seeds: int) -> str:
    from tests.test_live_fuzz import check

    check(*seeds)
    return ""


def _program(*seeds: int) -> str:
    from tests.test_program_fuzz import check

    check(*seeds)
    return ""


def _onnx(seed: int) -> str:
    from tests.support.onnx_fuzz import outcome

    found = outcome(seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < _MOST, (
        "more than 4 GB, or an earlier one of this process"
    )
    return found


# By kind: the first seed, and what a case is. Seeds below are those of the tests.
KINDS: dict[str, tuple[int, Callable[..., str]]] = {
    "graphs": (30_000, _graph),
    "live graphs": (30_000, _live_graph),
    "programs": (30_000, _program),
    "onnx": (0, _onnx),
}
TOGETHER = ("graphs", "live graphs", "programs")  # several cases at once


def known() -> dict[tuple[str, str, int], Row]:
    """What has run so far, by kind, version of torch and first seed."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["kind"], row["torch"], int(row["first"])): Row(
            int(row["first"]),
            int(row["tried"]),
            [*map(int, row["missed"].split())],
            collections.Counter(dict(_counted(entry) for entry in row["told"].split(", ") if entry)),
        )
        for row in rows
    }


def _counted(entry: str) -> tuple[str, int]:
    count, _, way = entry.partition(" ")
    return way, int(count)


def _write(rows: dict[tuple[str, str, int], Row]) -> None:
    lines = [
        [*key, row.tried, " ".join(map(str, row.missed)), ", ".join(f"{n} {w}" for w, n in sorted(row.told.items()))]
        for key, row in sorted(rows.items())
        if row.tried
    ]  # fmt: skip
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["kind", "torch", "first", "tried", "missed", "told"], *lines])


def _prepare() -> None:
    """Of a process that runs cases: one thread, no log, static at the first call, and an end to what never ends."""
    from lfpgraph.wrapping import choice

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {_LONGEST} s of processor time")

    choice.LIVE_FIRST = 0
    _lazy_graph_module._use_lazy_graph_module_flag = True
    torch._dynamo.config.fake_tensor_cache_enabled = False  # a random operation seldom comes again: an eighth of a case
    CapturedTraceback.summary = lambda self: traceback.StackSummary()  # type: ignore[method-assign]  # nobody reads them here
    gc.freeze()  # and a collector that does not walk over torch again and again
    gc.set_threshold(20_000, 20, 50)
    torch.set_num_threads(1)
    logging.getLogger("lfpgraph").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, stop)


def _cases(kind: str, seeds: Sequence[int]) -> list[tuple[int, str, str]]:
    """Of each seed: how it went, and what was wrong. In a process of its own, since torch itself may crash.

    Where that happens, each half runs by itself, down to one seed. One that crashes while it is only drawn, before anything of
    ours runs, is left out.
    """
    found = _forked(_checked, kind, seeds)
    if found is not None:
        return found  # type: ignore[no-any-return]
    if len(seeds) > 1:
        middle = len(seeds) // 2
        return _cases(kind, seeds[:middle]) + _cases(kind, seeds[middle:])
    if _forked(_draw, kind, seeds[0]) is None:
        return [(seeds[0], "not drawn", "")]
    return [(seeds[0], "", "the process crashed")]


def _forked(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a child of this process; None if that did not end by itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with open(writer, "wb") as file:
                pickle.dump(function(*args), file)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    return pickle.loads(answer) if os.waitpid(child, 0)[1] == 0 else None


def _draw(kind: str, seed: int) -> bool:
    """Draw a random graph or program, and run it in plain torch."""
    from tests import test_fuzz, test_live_fuzz, test_program_fuzz

    draws: dict[str, Callable[[int], Any]] = {
        "graphs": test_fuzz._case,
        "live graphs": test_live_fuzz._case,
        "programs": test_program_fuzz._draw,
    }
    draws.get(kind, lambda seed: None)(seed)
    return True


def _checked(kind: str, seeds: Sequence[int]) -> list[tuple[int, str, str]]:
    from tests.support.seeds import failures

    went: dict[int, str] = {}

    def run(*some: int) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, _LONGEST * len(some))
        try:
            went.update(dict.fromkeys(some, KINDS[kind][1](*some)))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    wrong = failures(run, seeds, 10 if kind in TOGETHER else 1)
    return [(seed, "" if seed in wrong else went[seed], wrong.get(seed, "")) for seed in seeds]


def _last_rows(kinds: Sequence[str], rows: dict[tuple[str, str, int], Row], first: int) -> dict[str, Row]:
    """Of each kind the row that goes on: the last on this torch, or a new one from `first` on, behind all that have run."""
    found = {}
    for kind in kinds:
        behind = [row.first + row.tried for (name, _, _), row in rows.items() if name == kind]  # of any torch
        own = [row for key, row in rows.items() if key[:2] == (kind, _version()) and row.first >= first]
        found[kind] = max(own, key=lambda row: row.first) if own else Row(max([KINDS[kind][0], first, *behind]))
        rows[kind, _version(), found[kind].first] = found[kind]
    return found


def _version() -> str:
    return torch.__version__.partition("+")[0]


def _blocks(going: dict[str, Row]) -> Iterator[tuple[Row, str, list[int]]]:
    """The next seeds, kind by kind in turn, without an end."""
    following = {kind: row.first + row.tried for kind, row in going.items()}
    while True:
        for kind, row in going.items():
            yield row, kind, [*range(following[kind], following[kind] + BLOCK)]
            following[kind] += BLOCK


def _blocks_again(kinds: Sequence[str], rows: dict[tuple[str, str, int], Row]) -> Iterator[tuple[Row, str, list[int]]]:
    """The seeds that failed on this torch; of graphs and programs with the hundred that they were checked with."""
    for (kind, version, _), row in rows.items():
        if kind in kinds and version == _version() and row.missed:
            tens = {seed - seed % BLOCK for seed in row.missed} if kind in TOGETHER else ()
            yield (
                row,
                kind,
                [seed for start in sorted(tens) for seed in range(start, start + BLOCK)] or list(row.missed),
            )


def run(kinds: Sequence[str], seconds: float, processes: int = 1, again: bool = False, first: int = 0) -> bool:
    """Run cases for so long, and note them in the table hundred by hundred; whether all held.

    Args:
        first: no seed below it.
    """
    rows, held, end = known(), True, time.monotonic() + seconds
    blocks = _blocks_again(kinds, rows) if again else _blocks(_last_rows(kinds, rows, first))
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _prepare)
    waiting: collections.deque[tuple[Row, str, Any]] = collections.deque()
    with pool:
        while True:
            while len(waiting) < 2 * processes and time.monotonic() < end and (block := next(blocks, None)):
                waiting.append((*block[:2], pool.submit(_cases, *block[1:])))
            if not waiting:
                return held
            row, kind, done = waiting.popleft()  # in their order, so that the table has no gaps
            for seed, way, wrong in done.result():
                row.tried += not again
                row.missed = sorted({*row.missed, seed} if wrong else {*row.missed} - {seed})
                row.told.update([way] if way else [])
                if wrong:
                    held = False
                    print(f"{kind}, seed {seed}: {wrong}", flush=True)
            _write(rows)
            print(f"{kind}: {row.tried:,} from seed {row.first:,} on, {len(row.missed)} missed", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all in turn by default")
    parser.add_argument("--seconds", type=float, default=600, help="no new hundred is begun after this time (600)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="those that failed")
    parser.add_argument("--first", type=int, default=0, help="no seed below it")
    given = parser.parse_args()
    raise SystemExit(not run(given.kinds or list(KINDS), given.seconds, given.processes, given.again, given.first))
