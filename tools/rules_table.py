"""Write docs/rules.md from the registry: `python -m tools.rules_table > docs/rules.md`; `--check` tells if it is current."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import lfpgraph  # noqa: F401  (fills the registry)
from lfpgraph.registry import FAMILIES, Rule, named_operations, registered_rules

__all__ = ["is_current", "rules_table"]

PAGE = Path(__file__).parents[1] / "docs" / "rules.md"
REGENERATE = "run python -m tools.rules_table > docs/rules.md"

EPSILON = {
    "always": "on every output",
    "weighted": "where one active operand meets weights",
    "mixing": "where several active operands meet",
    "never": "none",
}


def rules_table() -> str:
    """The page, families in order of declaration; the same whatever else is registered in this process."""
    groups: dict[str, list[Rule]] = defaultdict(list)
    named = named_operations()
    for entry in registered_rules():
        if str(entry.op).startswith("aten.") and entry.op.name() not in named:
            groups[entry.family.name].append(entry)
    total = sum(map(len, groups.values()))
    lines = [
        "# Rules",
        "",
        f"{total} operations in {len(groups)} families. Made by `python -m tools.rules_table > docs/rules.md`. An operation",
        "that is not here is taken apart into operations that are, where torch knows how. Else it gets its true vector-Jacobian",
        "product and is reported as derived. Without a derivative it is an error. [writing-rules.md](writing-rules.md) says how",
        "to add one.",
    ]
    for name, family in FAMILIES.items():
        if name not in groups:
            continue
        lines += ["", f"## {name}", ""]
        lines.append(
            f"Epsilon: {EPSILON[family.epsilon]}. Conserves reward: {'yes' if family.conserves else 'not promised'}. "
            f"{family.source[:1].upper()}{family.source[1:]}."
        )
        lines += ["", "| operation | rule | source |", "|---|---|---|"]
        for entry in groups[name]:
            module = entry.handler.__module__.rsplit(".", 1)[-1]
            lines.append(f"| `{str(entry.op)}` | `{module}.{entry.handler.__name__}` | {entry.source} |")
    lines += ["", "## By name", "", "Operations that exist only with some library or build of torch.", ""]
    lines += [f"- `{name}`: {family}" for name, family in sorted(named.items())]
    return "\n".join(lines) + "\n"


def is_current() -> bool:
    """Whether docs/rules.md is what the registry says now."""
    return PAGE.exists() and PAGE.read_text() == rules_table()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print docs/rules.md.")
    parser.add_argument("--check", action="store_true", help="print nothing; fail if docs/rules.md is not current")
    if not parser.parse_args().check:
        print(rules_table(), end="")
    elif not is_current():
        raise SystemExit(f"docs/rules.md is not current: {REGENERATE}")


if __name__ == "__main__":
    main()
