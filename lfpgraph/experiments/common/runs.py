"""Where runs are made: one after the other, or side by side in processes; and a file of those that are over."""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from ...errors import InputError

__all__ = ["Runs"]

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
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(tasks)} runs failed, the first with:\n{failures[0]}")
        return found

    def make(self, key: dict[str, Any], task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run with this key found: as the file has it, or by running it, as soon as there is a place.

        Raises:
            InputError: the run is not in the file, and only those that are may be taken.
        """
        found: dict[str, Any]
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file and self.file.exists() else ():
            known = json.loads(line)
            if known["run"] == key:
                found = known["found"]
                return found
        if self.kept_only:
            raise InputError(f"{self.file} holds no run {key}")
        with self.slots or nullcontext():
            found = task()
        if self.file is not None:
            line = json.dumps({"run": key, "found": found, "torch": torch.__version__, "device": self.device})
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        return found


def _answer(task: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send((task(), None))
    except Exception:
        sender.send((None, traceback.format_exc()))
