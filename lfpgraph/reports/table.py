"""The coverage report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import printable
from .classes import CLASSES, LEAKS

__all__ = ["MEANINGS", "count", "line", "percent", "render", "table_of"]

COLOURS = {"rule": "green", "structural": "cyan", "derived": "yellow", "none": "bright_black", "uncovered": "bold red"}
LONGEST = 10_000  # letters of a cell: rich takes minutes for a name of 10 million
MEANINGS = {
    "rule": "a rule of its own",
    "structural": "view, copy or cast: moves signals, changes none",
    "derived": "no rule: its true vector-Jacobian product",
    "none": "needs none: constant, integer, or no reward arrives",
    "uncovered": "reward arrives and cannot pass",
}


def count(number: float) -> str:
    """A count in at most five characters and a unit: 12.3 G."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 1000 or unit == "P":
            return f"{number:.0f}" if not unit else f"{number:.3g} {unit}"
        number /= 1000
    return str(number)


def percent(fraction: float) -> str:
    """A share that never rounds up to 100 % or down to 0."""
    if 0.9999 < fraction < 1:
        return "99.99 %"
    if 0 < fraction < 0.0001:
        return "<0.01 %"
    return f"{100 * fraction:.4g} %"


def render(data: Mapping[str, Any], limit: int = 30) -> Any:
    """A rich renderable: totals, operations (at most `limit` rows; problems are never cut), parameters, what to do."""
    from rich.console import Group

    parts = [_totals(data), _operations(data, limit), *_parameters(data), *_leaks(data), *_problems(data)]
    return Group(*(line(part) if isinstance(part, str) else part for part in parts), _verdict(data))


def table_of(title: str, *columns: str, right: Sequence[str] = ()) -> Any:
    """An empty table of rich; the columns named in `right` stand at their right side, the others fold.

    Titles and cells are taken as they stand.
    """
    from rich.table import Table

    class Plain(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    table = Plain(title=line(title))
    for name in columns:
        table.add_column(line(name), justify="right" if name in right else "left", overflow="fold")
    return table


def line(text: str) -> Any:
    """A text for the terminal as it stands: brackets in it are no markup, and controls are shown; a very long one is cut."""
    from rich.text import Text

    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 500]}... ({len(text):,} letters) ...{text[-500:]}"
    return Text(printable(text))


def _totals(data: Mapping[str, Any]) -> Any:
    nodes, flops, kinds = data["nodes"], data["summary"]["flops"], data["summary"]["operations"]
    seconds, tracer = data["trace"]["seconds"], data["trace"]["tracer"]
    title = f"{data['model']}: {nodes['total']} operations, traced in {seconds:.1f} s ({tracer})"
    numbers = ("operations", "", "kinds", "FLOPs", "")
    table = table_of(title, "class", *numbers, "what it means", right=numbers)
    for name in CLASSES:
        share = nodes[name] / nodes["total"] if nodes["total"] else 0.0
        work = flops[name] / flops["total"] if flops["total"] else 0.0
        table.add_row(
            name, str(nodes[name]), percent(share), str(kinds[name]), count(flops[name]), percent(work), MEANINGS[name],
            style=COLOURS[name] if nodes[name] else "bright_black",
        )  # fmt: skip
    return table


def _operations(data: Mapping[str, Any], limit: int) -> Any:
    rows = data["operations"]
    loud = [row for row in rows if row["class"] in ("uncovered", "derived")]
    quiet = [row for row in rows if row not in loud and row["class"] != "none"]
    shown = loud + quiet[: max(limit - len(loud), 0)]
    left = len(loud) + len(quiet) - len(shown)
    title = "Operations that carry reward" + (f" (and {left} more kinds)" if left else "")
    numbers = ("count", "FLOPs")
    table = table_of(title, "operation", "class", "family", *numbers, "first at", right=numbers)
    for row in shown:
        where = row["where"][0] if row["where"] else ""
        table.add_row(
            row["operation"], row["class"], row["family"], str(row["count"]), count(row["flops"]), where,
            style=COLOURS[row["class"]],
        )  # fmt: skip
    return table


def _parameters(data: Mapping[str, Any]) -> list[Any]:
    report = data["parameters"]
    lines: list[Any] = [
        f"Parameters: {report['rewarded']} of {report['total']} tensors receive reward "
        f"({count(report['rewarded_elements'])} of {count(report['elements'])} values)."
    ]
    if report["all_zero"]:
        names = report["all_zero"]
        lines.append(
            f"{len(names)} of them are all zero ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): "
            "feedback abs(w) * s is zero there."
        )
    if report["without_reward"]:
        table = table_of("Parameters without reward", "parameter", "values", "why", "what to do")
        rows = report["without_reward"]
        for row in rows[:20]:
            why = row["reason"] + (": " + "; ".join(row["where"]) if row["where"] else "")
            table.add_row(row["name"], count(row["elements"]), why, row["advice"])
        if len(rows) > 20:
            table.add_row(f"and {len(rows) - 20} more", "", "", "")
        lines.append(table)
    return lines


def _leaks(data: Mapping[str, Any]) -> list[str]:
    if not data["leaks"]:
        return []
    listed = ", ".join(f"{n} {kind}" for kind, n in data["leaks"].items())
    return [f"Reward can be absorbed at: {listed}.", *(f"  {kind}: {LEAKS[kind]}" for kind in data["leaks"])]


def _problems(data: Mapping[str, Any]) -> list[Any]:
    rows = data["problems"]
    if not rows:
        return []
    table = table_of("Operations without a rule", "operation", "class", "module", "source", "what to do")
    shown = [row for row in rows if row["class"] == "uncovered"] + [r for r in rows if r["class"] == "derived"][:20]
    for row in shown:
        cells = (row[key] for key in ("operation", "class", "module", "source", "advice"))
        table.add_row(*cells, style=COLOURS[row["class"]])
    if len(rows) > len(shown):
        table.add_row(f"and {len(rows) - len(shown)} more", "", "", "", "")
    return [table]


def _verdict(data: Mapping[str, Any]) -> str:
    summary, uncovered = data["summary"], data["nodes"]["uncovered"]
    share = f"{summary['covered_nodes']} of {summary['reward_bearing_nodes']} ({percent(summary['covered_fraction'])})"
    text = (
        f"Covered: {share} of the operations that carry reward; {percent(summary['derived_fraction'])} of them derived."
    )
    return f"[green]{text}[/green]" if not uncovered else f"[bold red]{text} {uncovered} cannot pass reward.[/bold red]"
