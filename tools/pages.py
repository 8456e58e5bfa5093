"""Tables on the pages of docs/, each between two marks that a reader does not see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["put_rows", "put_table"]


def _parts(page: Path, mark: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what comes after it; marks are with what is around it."""
    start, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, found, rest = page.read_text().partition(start)
    table, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for this table ({start.strip()})")
    return before + start, table, end + after


def put_table(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Put a table in its place, instead of the one that is there."""
    before, _, after = _parts(page, mark)
    page.write_text(before + "".join(f"{line}\n" for line in lines) + after)


def put_rows(
    page: Path,
    mark: str,
    head: Sequence[str],
    rows: Sequence[str],
    columns: int = 1,
    order: Sequence[str] | None = None,
) -> None:
    """Put rows in a table: each in place of the one with the same first cells; the others stay as they are.

    Args:
        head: the table's first two lines.
        columns: how many cells say what a row is of.
        order: the first cells that a row may begin with, in the order of the rows; others go. None: new rows come last.
    """

    def key(row: str) -> str:
        return " | ".join(cell.strip() for cell in row.split("|")[1 : columns + 1])

    found = {key(row): row for row in (*_parts(page, mark)[1].splitlines()[len(head) :], *rows)}
    put_table(page, mark, [*head, *(found[name] for name in (order or found) if name in found)])
