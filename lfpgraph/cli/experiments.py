"""The command line's `lfpgraph reproduce`: the papers' experiments by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TargetError, first_line
from .reports import STDOUT, JsonFile, finite, give_json, writable

if TYPE_CHECKING:
    from ..experiments import Report

__all__ = ["reproduce"]


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments (see --list), or all.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and NAME.png.")] = Path("experiments"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...: weights and batches.")] = 3,
    effort: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Epochs, as a multiple of the usual number.")
    ] = 1.0,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="torch threads of a run; 0 for torch's own choice.")
    ] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
    runs: Annotated[Path | None, typer.Option(help="File of finished runs; what is in it is not run again.")] = None,
    device: Annotated[str, typer.Option(help="Where models are trained: cpu, cuda.")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train by LFP and by backprop as the papers do, on data that ships; a table, a plot and a JSON file."""
    from contextlib import nullcontext
    from functools import partial

    import torch
    from rich.console import Console

    from ..experiments import EXPERIMENTS, Runs, Settings
    from ..experiments import reproduce as reproduce_one

    writable(json_file)
    if list_all or not names:
        if not list_all:
            raise TargetError(f"name an experiment, or all: {', '.join(EXPERIMENTS)}")
        listed = [{"name": one.name, "summary": one.summary} for one in EXPERIMENTS.values()]
        give_json(json_file, lambda: listed)
        if json_file != STDOUT:
            typer.echo("\n".join(f"{one['name']:12s}  {one['summary']}" for one in listed))
        return
    todo = list(EXPERIMENTS) if names == ["all"] else names
    for name in todo:
        if name not in EXPERIMENTS:
            raise TargetError(f"no experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    if out.exists() and not out.is_dir():
        raise TargetError(f"cannot write into {out}: it is not a folder")
    try:
        torch.empty(1, device=device)
    except Exception as error:  # a device's own library raises what it likes
        raise TargetError(f"--device {device!r} cannot be used: {first_line(error)}") from error
    if runs is not None and runs.is_fifo():  # reading it may never end
        raise TargetError(f"cannot keep runs in {runs}: it is a pipe")
    writable(runs, *(out / f"{name}.json" for name in todo))
    torch.set_num_threads(threads or torch.get_num_threads())
    book = Runs.side_by_side(processes, runs, device)
    # a spinner would be a thread, which a process that forks should not have
    shown = nullcontext() if processes > 1 else Console(stderr=True).status("tracing")
    with shown as status:

        def one(name: str) -> Report:
            def progress(line: str) -> None:
                typer.echo(f"{name}: {line}", err=True) if status is None else status.update(f"{name}: {line}")

            report = reproduce_one(name, Settings(seeds, effort, progress, runs=book), out)
            if json_file != STDOUT:
                _show(Console(), report, out)
            return report

        found = book.together([partial(one, name) for name in todo])
    results = [report.to_json() for report in found]
    give_json(json_file, lambda: results[0] if len(results) == 1 else results)


def _show(console: Any, report: Report, out: Path) -> None:
    from ..reports.table import table_of

    head, *rows = report.table()
    table = table_of(f"{report.name}: {report.metric}", *head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in report.notes:
        typer.echo(note)
    typer.echo(f"written: {out / report.name}.json, {out / report.name}.png")
