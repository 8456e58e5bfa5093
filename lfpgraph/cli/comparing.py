"""The command line's `lfpgraph compare`: several ways of training side by side on the user's own model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..writing import write_text
from .reports import STDOUT, JsonFile, LossName, OwnData, OwnModel, Threads, finite, give_json, writable

__all__ = ["compare"]


def compare(
    model: OwnModel,
    data: OwnData,
    ways: Annotated[
        str,
        typer.Option(
            help="Composites, and ways of lfpgraph.comparison.METHODS (docs/methods.md); with commas between."
        ),
    ] = "lfp,backprop,dfa,usf,mezo",
    loss: LossName = "cross_entropy",
    steps: Annotated[int | None, typer.Option(min=1, help="Budget of a run; 300 if none is given.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, callback=finite, help="Or its budget in seconds.")] = None,
    rates: Annotated[str, typer.Option(help="The grid of rates, with commas between.")] = "1e-3,3e-3,1e-2",
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...: weights and batches.")] = 1,
    threads: Threads = 0,
    out: Annotated[Path, typer.Option(help="Where to write the HTML report.")] = Path("comparison.html"),
    json_file: JsonFile = None,
) -> None:
    """Train your model in several ways, from one start on the same batches, each at its own best rate."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ..comparison import compare as compare_ways
    from ..errors import TargetError
    from .functions import call_target, examples, load_target, loss_named, own_code

    try:
        grid = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise TargetError(f"--rates {rates!r} must be numbers with commas between") from None
    build = load_target(model)
    train, test = examples(call_target(load_target(data), data), data)
    writable(out, json_file)
    torch.set_num_threads(threads or torch.get_num_threads())
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    shown = Progress(*columns, console=console, disable=not console.is_terminal)
    with own_code(f"training {model!r}"), shown as bar:
        task = bar.add_task("preparing", total=None)
        result = compare_ways(
            lambda: call_target(build, model), train, test, [way.strip() for way in ways.split(",")],
            loss=loss_named(loss), steps=steps, seconds=seconds, rates=grid, batch_size=batch_size, seeds=seeds, name=model,
            progress=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )  # fmt: skip
    write_text(out, result.to_html())
    give_json(json_file, result.to_json)
    if json_file != STDOUT:
        Console().print(result.table())
        typer.echo(f"report: {out}")
