"""The command line. `lfpgraph demo` and `lfpgraph train` are here, the other commands in the modules beside this one."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..errors import LfpGraphError, TargetError, printable
from ..writing import written_whole
from .comparing import compare as compare_command
from .experiments import reproduce
from .explanation import explain
from .onnx_files import export
from .reports import (
    STDOUT,
    Command,
    Epsilon,
    JsonFile,
    LossName,
    OwnData,
    OwnModel,
    Seed,
    Threads,
    check,
    coverage,
    finite,
    give_json,
    graph,
    writable,
    zoo,
)  # fmt: skip

if TYPE_CHECKING:
    from ..demo.training import Options, Result

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, help="Feedback training for any PyTorch model.", pretty_exceptions_enable=False)
for _command in (coverage, check, graph, zoo, reproduce, explain, export):
    app.command(cls=Command)(_command)
app.command("compare", cls=Command)(compare_command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lfpgraph {version('lfpgraph')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Feedback training for any PyTorch model."""


# What typer raises for a call that it cannot read; which class that is depends on its version.
_WrongCall: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line: 1 is the exit status of our own errors and the system's, 2 of a wrong call; each is one line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal's letters are few
    try:
        status = app(prog_name="lfpgraph", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # what goes wrong with it at Python's end cannot be caught
    except LfpGraphError as error:
        _stop(str(error), 1)
    except _WrongCall as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "lfpgraph"
        _stop(f"{error.format_message().rstrip('.')}; try {command} --help", 2)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno != errno.EPIPE:  # whoever reads has read enough
            _stop(f"{error.filename or 'cannot read or write'}: {error.strerror or error}", 1)
        _let_go()
        status = 1
    sys.exit(status or 0)


def _stop(message: str, status: int) -> NoReturn:
    words = [word if len(word) <= 300 else f"{word[:100]}...{word[-100:]}" for word in message.split()]
    print(f"lfpgraph: {printable(' '.join(words))}", file=sys.stderr)
    _let_go()
    sys.exit(status)


def _let_go() -> None:
    """Leave nothing that an output does not take, or Python would try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command(cls=Command)
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the HTML report.")] = Path("report.html"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each model.")] = 20,
    seed: Seed = 0,
    threads: Threads = 1,
    json_file: JsonFile = None,
) -> None:
    """Train three models on scikit-learn's digits, by LFP and by backprop: a ViT, a CNN, a CNN of step functions."""
    from dataclasses import replace

    from ..demo.data import digits
    from ..demo.training import Options
    from ..models_zoo.digits import cnn, step_cnn, vit

    train, test = digits()
    wide = Options(epochs=epochs, lr=3e-3, batch_size=64, seed=seed)
    cases = [
        ("ViT (transformers)", vit, replace(wide, lr=1e-3)),
        ("CNN, ReLU", cnn, wide),
        ("CNN, step activations", step_cnn, wide),
    ]
    writable(out, json_file)
    # Models this small gain nothing from a second thread, and two that share a core wait for each other at every step.
    with _threads(threads):
        results = _train_all(cases, train, test, "cross_entropy")
    _finish(results, out, json_file, "lfpgraph demo: digits")


@app.command(cls=Command)
def train(
    model: OwnModel,
    data: OwnData,
    loss: LossName = "cross_entropy",
    composite: Annotated[str, typer.Option(help="Which rules to use.")] = "lfp",
    epsilon: Epsilon = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    lr: Annotated[float, typer.Option(min=0.0, callback=finite)] = 1e-3,
    suggest: Annotated[
        bool, typer.Option("--suggest-lr", help="Find a rate for each way by a short range test, in place of --lr.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    optimizer: Annotated[str, typer.Option(help="A class of torch.optim.")] = "AdamW",
    clip: Annotated[float, typer.Option(min=0.0, callback=finite, help="Largest gradient norm; 0 for none.")] = 1.0,
    seed: Seed = 0,
    compare: Annotated[bool, typer.Option(help="Train a copy by backprop beside it.")] = True,
    out: Annotated[Path, typer.Option(help="Where to write the HTML report.")] = Path("report.html"),
    save: Annotated[Path | None, typer.Option(help="Save the trained weights (.safetensors).")] = None,
    threads: Threads = 0,
    json_file: JsonFile = None,
) -> None:
    """Train your own model on your own data by LFP, beside backprop."""
    from ..composites.composite import get_composite
    from ..demo.training import Options
    from .functions import call_target, datasets, load_target, optimizer_named, own_code

    rules = get_composite(composite)
    if epsilon is not None:
        rules = rules.with_options(epsilon=epsilon)
    build, make_data = load_target(model), load_target(data)
    options = Options(
        epochs=epochs, lr=None if suggest else lr, batch_size=batch_size, optimizer=optimizer_named(optimizer), clip=clip or None,
        composite=rules, seed=seed, compare=compare,
    )  # fmt: skip
    train_set, test_set = datasets(call_target(make_data, data), data)
    writable(out, json_file, replaced=save)
    with _threads(threads):
        results = _train_all([(model, build, options)], train_set, test_set, loss)
    if save is not None:
        from safetensors.torch import save_model

        with own_code(f"writing {save}"), written_whole(save) as new:
            save_model(results[0].model, str(new))
    if suggest:
        typer.echo(", ".join(f"{run.way}: rate {run.lr:g}" for run in (results[0].lfp, results[0].backprop) if run))
    _finish(results, out, json_file, f"lfpgraph train: {model}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside; 0 changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_all(cases: list[tuple[str, Any, Options]], train: Any, test: Any, loss: str) -> list[Result]:
    """Run `compare` on every case under one progress display."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..demo.training import compare
    from .functions import call_target, loss_named, own_code

    function = loss_named(loss)
    metric = "accuracy" if loss in ("cross_entropy", "nll_loss") else "loss"
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    console, results = Console(stderr=True), []
    live = TextColumn("{task.fields[live]}")
    with Progress(*columns, live, console=console, disable=not console.is_terminal) as progress:
        for name, build, options in cases:
            torch.manual_seed(options.seed)
            model = call_target(build, name)
            if not isinstance(model, torch.nn.Module):
                raise TargetError(f"{name!r} must return an nn.Module, not {type(model).__name__}")
            steps = options.epochs * -(-len(train[0]) // options.batch_size)
            task = progress.add_task(name, total=steps, live="tracing")

            def show(result: Result, task: Any = task) -> None:
                progress.update(task, advance=1, live=_live(result))

            with own_code(f"training {name!r}"):
                results.append(compare(name, model, train, test, function, options, show, metric))
    return results


def _live(result: Result) -> str:
    parts = []
    for run in (result.lfp, result.backprop):
        if run is not None and run.metric:
            last = f"{run.metric[-1] * 100:.1f} %" if result.metric == "accuracy" else f"{run.metric[-1]:.4f}"
            parts.append(f"{run.way} {last}")
    return "  ".join(parts)


def _finish(results: list[Result], out: Path, json_file: Path | None, title: str) -> None:
    from rich.console import Console

    from ..demo.report import closing_table, write_report

    write_report(results, out, title)
    give_json(json_file, lambda: [result.to_json() for result in results])
    if json_file != STDOUT:
        Console().print(closing_table(results))
        typer.echo(f"report: {out}")


if __name__ == "__main__":
    main()
