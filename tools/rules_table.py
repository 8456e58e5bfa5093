"""Write docs/rules.md from the registry: `python -m tools.rules_table > docs/rules.md`."""

from __future__ import annotations

from collections import defaultdict

import lfpgraph  # noqa: F401  (fills the registry)
from lfpgraph.registry import FAMILIES, Rule, named_operations, registered_rules

__all__ = ["rules_table"]

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
        f"{total} operations in {len(groups)} families. Made by `python -m tools.rules_table > docs/rules.md`. An operation that",
        "is not here is taken apart into some that are, where torch knows how; else it gets the true vector-Jacobian product",
        "and is reported as derived; else it is an error. How to add one: [writing-rules.md](writing-rules.md).",
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
    lines += ["", "## By name", "", "Operations that are there only with some library or build of torch.", ""]
    lines += [f"- `{name}`: {family}" for name, family in sorted(named.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(rules_table(), end="")
