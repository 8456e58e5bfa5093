"""Where the figures of a run go: JSON lines, CSV, TensorBoard, a progress bar."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import TrainingError
from ..optional import need

__all__ = ["Bar", "CsvLog", "JsonLines", "Logger", "TensorBoard", "make_loggers", "refuse_other_files"]

log = logging.getLogger("lfpgraph")
Record = Mapping[str, Any]


class Logger(Protocol):
    """Takes one record of a step or an evaluation at a time; a logger of your own needs these two methods."""

    def write(self, record: Record) -> None:
        """Take a record: `step`, `epoch` and figures by name."""

    def close(self) -> None:
        """The run has ended."""


class JsonLines:
    """One JSON object a line, each line written by one call, so that a reader never meets half of one.

    Args:
        file: where to. after: keep the lines up to this step of a run taken up again; None starts anew. In both cases what
            the file held otherwise is put aside.
    """

    def __init__(self, file: Path, after: int | None) -> None:
        kept, odd = [], []
        for line in _lines(file, after):
            step = _step_in(line)
            if step is None:
                odd.append(line)
            elif after is not None and step <= after:
                kept.append(line)
        _put_aside(file, odd)
        _replace(file, kept)
        self.handle = os.open(file, os.O_WRONLY | os.O_APPEND)

    def write(self, record: Record) -> None:
        line = (json.dumps(record) + "\n").encode()
        if os.write(self.handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        os.close(self.handle)


def _step_in(line: str) -> int | None:
    """The step of a record in JSON; None for what is none: cut short, foreign or damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None


def _lines(file: Path, after: int | None) -> list[str]:
    """The lines of a log that is taken up; bytes that are no text stay what they are. A run begun anew puts an old log aside."""
    if not file.exists():
        return []
    if after is None and file.stat().st_size:
        count = 1
        while (kept := file.with_name(f"{file.name}.{count}")).exists():
            count += 1
        file.rename(kept)
        log.warning("%s held the log of another run: it is kept as %s", file, kept.name)
        return []
    if not file.is_file() and not file.is_dir():
        raise OSError(errno.EINVAL, f"{file.name} is no regular file")
    return [line for line in file.read_bytes().decode("utf-8", "surrogateescape").split("\n") if line.strip()]


def _put_aside(file: Path, odd: Sequence[str]) -> None:
    """Keep lines that are no records in a file of their own."""
    if odd:
        aside = file.with_name(f"{file.name}.odd")
        if aside.is_symlink() or (aside.exists() and (not aside.is_file() or aside.stat().st_nlink > 1)):
            raise OSError(errno.EINVAL, f"{aside.name} is a link or no regular file")
        with aside.open("a", encoding="utf-8", errors="surrogateescape") as rest:
            rest.writelines(line + "\n" for line in odd)
        log.warning(
            "%s held %d lines that are no records, or cut short: they are kept in %s", file, len(odd), aside.name
        )


class CsvLog:
    """A table with a column for each figure; a figure that comes later adds a column. A row is one line.

    Args:
        file, after: as for `JsonLines`.
    """

    def __init__(self, file: Path, after: int | None) -> None:
        self.file = file
        self.rows: list[Record] = []
        self.columns: list[str] = []
        odd = []
        lines = _lines(file, after)
        cells = [_cells(line) for line in lines]
        head = next((i for i, row in enumerate(cells) if "step" in row and len(set(row)) == len(row)), len(lines))
        for i, row in enumerate(cells):
            record = dict(zip(cells[head], row)) if i > head and len(row) == len(cells[head]) else {}
            if re.fullmatch(r"\d{1,18}", record.get("step", "")):
                self.rows += [record] if after is not None and int(record["step"]) <= after else []
            elif i != head:
                odd.append(lines[i])
        _put_aside(file, odd)
        self._learn(*self.rows)
        self._rewrite()

    def _learn(self, *records: Record) -> bool:
        new = dict.fromkeys(key for record in records for key in record if key not in self.columns)
        self.columns += new
        return bool(new)

    def _line(self, values: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(map(_cell, values))
        return text.getvalue()

    def _rewrite(self) -> None:
        lines = [self.columns] if self.columns else []
        lines += [[row.get(c, "") for c in self.columns] for row in self.rows]
        _replace(self.file, map(self._line, lines))

    def write(self, record: Record) -> None:
        self.rows.append(record)
        if self._learn(record):
            self._rewrite()
        else:
            with self.file.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(self._line([record.get(c, "") for c in self.columns]) + "\n")

    def close(self) -> None:
        pass


def _cells(line: str) -> list[str]:
    """A row of a table; none of a line that is damaged."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _cell(value: Any) -> Any:
    """A value as a table's cell: on one line, and no formula to a program that opens the table."""
    if not isinstance(value, str):
        return value
    value = " ".join(value.splitlines())
    try:
        float(value)
    except ValueError:
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t")) else value
    return value


def _replace(file: Path, lines: Iterable[str]) -> None:
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)  # a link would be followed
    with part.open("x", encoding="utf-8", errors="surrogateescape") as new:
        new.writelines(line + "\n" for line in lines)
    part.replace(file)


class TensorBoard:
    """Figures as TensorBoard's scalars; `folder` is what `tensorboard --logdir` takes."""

    def __init__(self, folder: Path, after: int | None) -> None:
        need("tensorboard", "tensorboard", "logging to TensorBoard")
        writer = need("torch.utils.tensorboard", "tensorboard", "logging to TensorBoard").SummaryWriter
        self.writer = writer(str(folder), purge_step=None if after is None else after + 1)

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                self.writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self.writer.close()


_LOGGERS: dict[str, tuple[Callable[[Path, int | None], Logger], str]] = {
    "jsonl": (JsonLines, "log.jsonl"),
    "csv": (CsvLog, "log.csv"),
    "tensorboard": (TensorBoard, "tensorboard"),
}


def make_loggers(asked: Sequence[str | Logger], folder: Path | None, after: int | None) -> list[Logger]:
    """The loggers: those given by name write into `folder` (without one there are none), others are as they are.

    Args:
        after: the step of the checkpoint that the run goes on from; None for a new run.

    Raises:
        TrainingError: an unknown name. OSError: a file cannot be written.
    """
    made: list[Logger] = []
    for name in asked:
        if not isinstance(name, str) and hasattr(name, "write") and hasattr(name, "close"):
            made.append(name)
        elif not isinstance(name, str) or name not in _LOGGERS:
            raise TrainingError(f"no logger {name!r}; known: {', '.join(_LOGGERS)}, or an object with write and close")
        elif folder is not None:
            kind, file = _LOGGERS[name]
            made.append(kind(folder / file, after))
    return made


def refuse_other_files(asked: Sequence[str | Logger], folder: Path | None) -> None:
    """Raise an OSError where what is to be taken up as a log is none, before anything of the run changes."""
    for name in asked:
        if folder is not None and name in ("jsonl", "csv"):
            file = folder / _LOGGERS[name][1]
            if file.exists() and not file.is_file():
                raise OSError(errno.EINVAL, f"{file.name} is no regular file")


class Bar:
    """A progress bar with live figures on a terminal's stderr; nothing elsewhere.

    Args:
        show: True, False, or "auto": where stderr is a terminal and rich is installed.
        total: steps of the whole run, if known. name: what is trained.
    """

    def __init__(self, show: bool | str, total: int | None, name: str) -> None:
        self.progress: Any = None
        if show is False or (show == "auto" and not sys.stderr.isatty()):
            return
        try:
            rich = need("rich.progress", "trainer", "the progress bar")
        except ImportError:
            if show == "auto":
                return
            raise
        columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()]
        columns += [rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[live]}")]
        console = need("rich.console", "trainer", "the progress bar").Console(stderr=True)
        self.progress = rich.Progress(*columns, console=console)
        self.task = self.progress.add_task(name, total=total, live="")
        self.live: dict[str, str] = {}

    def write(self, record: Record) -> None:
        """Show a record of a step or an evaluation."""
        if self.progress is None:
            return
        self.progress.start()
        for key, value in record.items():
            if isinstance(value, float) and key not in ("seconds", "grad_norm"):
                self.live[key] = f"{value:.4g}"
        live = "  ".join(f"{key} {value}" for key, value in self.live.items())
        self.progress.update(self.task, completed=record["step"], live=live)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
