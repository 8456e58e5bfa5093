"""Arguments that several commands take, and the reports: `lfpgraph coverage`, `check`, `graph` and `zoo`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import TargetError
from ..writing import write_text

__all__ = [
    "STDOUT",
    "Command",
    "Epsilon",
    "JsonFile",
    "LossName",
    "OwnData",
    "OwnModel",
    "Seed",
    "Target",
    "Threads",
    "UsageError",
    "check",
    "coverage",
    "finite",
    "give_json",
    "graph",
    "report_on",
    "writable",
    "zoo",
]


TARGET = (
    "A transformers model type (gpt2), a folder or file with a config.json, module:function returning a model or "
    "(model, inputs), a zoo name (lfpgraph zoo), an exported program (.pt2), or an ONNX file (.onnx)."
)
Target = Annotated[str, typer.Argument(help=TARGET)]
OwnModel = Annotated[str, typer.Argument(help="module:function that returns an nn.Module.")]
OwnData = Annotated[str, typer.Argument(help="module:function that returns (train, test), each a dataset or (x, y).")]
LossName = Annotated[str, typer.Option(help="A loss of torch.nn.functional, e.g. cross_entropy, mse.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="torch threads; 0 for torch's own choice.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of weights and batches.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="[FILE]", help="Write the figures as JSON to FILE; without FILE print them alone."),
]
STDOUT = Path("-")
_CLICK = {base.__name__: base for base in typer.BadParameter.__mro__}  # typer has taken click into itself
UsageError: type[Exception] = _CLICK["UsageError"]


class Command(TyperCommand):
    """A command whose `--json` stands alone or before a FILE, as the words around it make sense.

    What ends in .json is taken for the FILE if it can be; another word is, if it cannot be anything else.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--json" not in args:
            return super().parse_args(ctx, args)
        place = args.index("--json") + 1
        printed = [*args[:place], str(STDOUT), *args[place:]]
        readings = [printed, list(args)]
        if args[place:] and args[place].endswith(".json"):
            readings.reverse()
        refused = None
        for reading in readings:
            try:
                ctx.params.clear()
                return super().parse_args(ctx, list(reading))
            except UsageError as error:
                refused = error if refused is None or reading is printed else refused
        assert refused is not None
        raise refused


def give_json(where: Path | None, figures: Callable[[], Any]) -> None:
    """Print figures as JSON, or write them to a file; nothing where no `--json` was given."""
    if where is not None:
        text = json.dumps(figures(), indent=1)
        if where == STDOUT:
            typer.echo(text)
        else:
            write_text(where, text + "\n")


def finite(value: float | None) -> float | None:
    """A number of the command line, which may be neither infinite nor none at all."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Epsilon = Annotated[
    float | None, typer.Option(min=0.0, callback=finite, help="The composite's epsilon, if not its own.")
]


def coverage(
    target: Target,
    composite: Annotated[str, typer.Option(help="Whose rules are reported.")] = "lfp",
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option(help="Also write a self-contained HTML report.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Operations to list.")] = 30,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show log lines.")] = False,
) -> None:
    """Which operations of a model carry reward, by which rule, and what cannot. Exit status 1 if anything cannot."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    writable(html, json_file)
    report = report_on(target, composite, quiet=json_file == STDOUT)
    if html is not None:
        write_text(html, report.to_html())
    give_json(json_file, report.to_json)
    if json_file != STDOUT:
        from rich.console import Console

        console = Console()
        console.print(report.table(limit=rows))
        if html is not None:
            typer.echo(f"report: {html}")
    if not report.covered:
        raise typer.Exit(1)


def check(
    target: Target,
    against: Annotated[str | None, typer.Option(help="Another implementation of the rules: lxt.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one float input without its batch, e.g. 1,8,8; else worked out.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Largest relative difference that is right.")
    ] = 1e-4,
    json_file: JsonFile = None,
) -> None:
    """Whether a model's graph computes what the model does, and its rules what another library's do. Exit status 1 if not."""
    from dataclasses import asdict

    from ..audits.checks import check as compare
    from .functions import own_code
    from .models import real_model

    writable(json_file)
    model, example = real_model(target, shape)
    with own_code(f"running {target!r}"):
        found = compare(model.eval(), example, against)
    give_json(json_file, lambda: asdict(found))
    if json_file != STDOUT:
        typer.echo(found.table())
    if not found.ok(tolerance):
        raise typer.Exit(1)


def report_on(target: str, composite: str = "lfp", quiet: bool = False) -> Any:
    """The coverage report of a TARGET, with a spinner on the terminal."""
    from contextlib import nullcontext

    from rich.console import Console

    from ..composites.composite import get_composite
    from .models import resolve_model
    from .variants import first_report

    get_composite(composite)
    console = Console(stderr=True)
    status = nullcontext() if quiet or not console.is_terminal else console.status(f"building {target}")
    with status as spinner:
        found = resolve_model(target)
        if spinner is not None:
            spinner.update(f"tracing {found.name}")
        return first_report(found, composite)


def writable(*files: Path | None, replaced: Path | None = None) -> None:
    """Refuse a path that cannot be written before the work, not after it; and one that is given twice.

    Args:
        replaced: one that another file will take the place of, and so may be no device or pipe: `/dev/null` would be gone.
    """
    seen: set[Path] = set()
    for file in (file for file in (*files, replaced) if file not in (None, STDOUT)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                raise TargetError(f"cannot write {file}: it is a folder")
            if file is replaced and file.exists() and not file.is_file():
                raise TargetError(f"cannot write {file}: it is no regular file")
            new = not file.exists()
            if new or file.is_file():  # no pipe, whose reader would take this for all
                file.open("ab").close()
            if new:
                file.resolve().unlink()  # a link to what is not there yet stays
        except (OSError, ValueError) as error:  # a ValueError of a name with a zero byte
            raise TargetError(f"cannot write {file}: {getattr(error, 'strerror', error)}") from error
        if file.resolve() in seen:
            raise TargetError(f"cannot write {file} twice: give each of the files a name of its own")
        seen.add(file.resolve())


def graph(
    target: Target,
    out: Annotated[
        Path | None, typer.Option(help="A file ending in .dot, .graphml, .json or .html; else only the analysis.")
    ] = None,
    depth: Annotated[int, typer.Option(min=0, help="Draw modules down to this depth; 0 draws every operation.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """The operation graph of a model: depth, fan-out, residual paths, cut points; and as DOT, GraphML, JSON or HTML."""
    from ..reports.analysis import analyse, render
    from ..reports.drawing import FORMATS, write_graph

    if out is not None and out.suffix not in FORMATS:
        raise TargetError(f"cannot write {out}: the name must end in one of {', '.join(FORMATS)}")
    writable(out, json_file)
    report = report_on(target, quiet=json_file == STDOUT)
    found = analyse(report)
    if out is not None:
        write_graph(report, out, depth)
    give_json(json_file, lambda: found)
    if json_file == STDOUT:
        return
    from rich.console import Console

    console = Console()
    console.print(render(found))
    if out is not None:
        typer.echo(f"graph: {out}")


def zoo(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List the zoo: architectures that `lfpgraph coverage NAME` knows without a configuration."""
    from rich.console import Console

    from ..models_zoo import ZOO
    from ..reports.table import table_of

    writable(json_file)
    entries = [entry for entry in ZOO.values() if family in (None, entry.family)]
    if not entries:
        raise TargetError(f"no family {family!r}; families: {', '.join(sorted({e.family for e in ZOO.values()}))}")
    give_json(json_file, lambda: [{"name": entry.name, "family": entry.family} for entry in entries])
    if json_file == STDOUT:
        return
    table = table_of(f"{len(entries)} architectures", "family", "names")
    for kind in dict.fromkeys(entry.family for entry in entries):
        table.add_row(kind, ", ".join(entry.name for entry in entries if entry.family == kind))
    Console().print(table)
