"""Where runs are made: one after the other, or side by side in processes; and a file of those that are over."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from ...errors import InputError, LfpGraphError

__all__ = ["Runs"]

log = logging.getLogger("lfpgraph")
T = TypeVar("T")
_FORK: Final = "fork"  # tasks are closures over models and data, which only a fork takes along


@dataclass(frozen=True)
class Runs:
    """How runs are made.

    Attributes:
        file: a line of JSON for each run that is over. A run that is there already is not made again, so what was broken off
            goes on from there.
        slots: a semaphore with as many places as runs may go on at once; None for one after the other in this process.
        device: where models are trained.
        kept_only: refuse to make a run that is not in the file.
    """

    file: Path | None = None
    slots: Any = None
    device: str = "cpu"
    kept_only: bool = False

    @classmethod
    def side_by_side(cls, processes: int, file: Path | None = None, device: str = "cpu") -> Runs:
        """So many at once, each in a process of its own; 1 for none but this process."""
        return cls(file, get_context(_FORK).Semaphore(processes) if processes > 1 else None, device)

    def together(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """The results of tasks that do not depend on one another; a process each, if runs go on side by side.

        Raises:
            RuntimeError: a task failed in its process, or the process ended without an answer.
            LfpGraphError: the first task that failed was refused with it.
        """
        if self.slots is None or len(tasks) < 2:
            return [task() for task in tasks]
        context: Any = get_context(_FORK)
        started = []
        for task in tasks:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(task, sender))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)  # torch's, idle
                process.start()
            sender.close()
            started.append((process, receiver))
        found: list[Any] = []
        failures = []
        for process, receiver in started:
            try:
                result, failure = receiver.recv()
            except EOFError:
                result, failure = None, "its process ended without an answer"
            process.join()
            found.append(result)
            failures += [failure] if failure else []
        if failures and isinstance(failures[0], LfpGraphError):
            raise failures[0]
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(tasks)} runs failed, the first with:\n{failures[0]}")
        return found

    def make(self, key: dict[str, Any], task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run with this key found: as the file has it, or by running it, as soon as there is a place.

        Raises:
            InputError: the run is not in the file, and only those that are may be taken.
        """
        for run, known in self._over():
            if run == key:
                return known
        if self.kept_only:
            raise InputError(f"{self.file} holds no run {key}")
        with self.slots or nullcontext():
            found = task()
        if self.file is not None:
            line = json.dumps({"run": key, "found": found, "torch": torch.__version__, "device": self.device})
            with self.file.open("a+b") as file:
                end = file.seek(0, 2)
                file.seek(max(end - 1, 0))
                torn = end > 0 and file.read() != b"\n"  # of a run that was killed while it wrote
                file.write(f"{chr(10) if torn else ''}{line}\n".encode())
        return found

    def _over(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The runs in the file; lines that are none are passed over, and counted in the log.

        Raises:
            InputError: the file cannot be read.
        """
        if self.file is None or not self.file.exists():
            return
        odd = 0
        try:
            text = self.file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"cannot read the file of runs {self.file}: {error.strerror}") from error
        for line in text.splitlines():
            try:
                known = json.loads(line)
                run, found = known["run"], known["found"]
            except (ValueError, KeyError, TypeError, RecursionError):
                odd += 1
                continue
            yield run, found
        if odd:
            log.warning("%s: %d lines are no runs and are passed over", self.file, odd)


def _answer(task: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send((task(), None))
    except LfpGraphError as error:
        sender.send((None, error))
    except Exception:
        sender.send((None, traceback.format_exc()))
