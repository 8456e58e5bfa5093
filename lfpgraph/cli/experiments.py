"""The command line's `lfpgraph reproduce`: the papers' experiments by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TargetError

if TYPE_CHECKING:
    from ..experiments import Report

__all__ = ["reproduce"]


def reproduce(
    name: Annotated[str | None, typer.Argument(help="An experiment (see --list), or all.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and NAME.png.")] = Path("experiments"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...: weights and batches.")] = 3,
    effort: Annotated[float, typer.Option(min=0.0, help="Epochs, as a multiple of the usual number.")] = 1.0,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 for torch's own choice.")] = 1,
    json_out: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Train by LFP and by backprop as the papers do, on data that ships; a table, a plot and a JSON file."""
    import json

    import torch
    from rich.console import Console

    from ..experiments import EXPERIMENTS, Settings
    from ..experiments import reproduce as reproduce_one

    if list_all or name is None:
        if not list_all:
            raise TargetError(f"name an experiment, or all: {', '.join(EXPERIMENTS)}")
        for experiment in EXPERIMENTS.values():
            typer.echo(f"{experiment.name:12s}  {experiment.summary}")
        return
    names = list(EXPERIMENTS) if name == "all" else [name]
    if out.exists() and not out.is_dir():
        raise TargetError(f"cannot write into {out}: it is not a folder")
    torch.set_num_threads(threads or torch.get_num_threads())
    console, found = Console(), []
    for one in names:
        with Console(stderr=True).status(f"{one}: tracing") as status:
            settings = Settings(seeds, effort, lambda line, one=one: status.update(f"{one}: {line}"))  # type: ignore[misc]
            report = reproduce_one(one, settings, out)
        found.append(report.to_json())
        if not json_out:
            _show(console, report, out)
    if json_out:
        typer.echo(json.dumps(found if name == "all" else found[0], indent=1))


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
