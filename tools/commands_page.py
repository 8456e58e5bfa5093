"""The page of the command line, from the commands themselves: python -m tools.commands_page writes it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lfpgraph.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "command-line.md"

_HEAD = """# The command line

`lfpgraph COMMAND --help` says the same. What is wrong in a call is one line on stderr: status 2 for arguments that cannot be,
1 for what is found wrong later (a file, a model, a name), or where a report is not good. Files are tried before the work.
Everywhere, `--json` prints figures in place of tables, and `--json FILE` writes them beside what is printed.

Made from the commands by `python -m tools.commands_page`.
"""


def page() -> str:
    """The page's text."""
    parts = [_HEAD]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        words = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)
        parts.append(f"## lfpgraph {name}\n\n{command.help.strip()}\n\n```\nlfpgraph {name} {words} [OPTIONS]\n```\n")
        rows = [f"| `{p.name.upper()}` | {_cell(p.help)} | |" for p in arguments]
        rows += [
            f"| `{', '.join([*p.opts, *p.secondary_opts])}` | {_cell(p.help)} | {_default(p)} |"
            for p in command.params
            if p.param_type_name == "option" and p.name != "help"
        ]
        parts.append("| | | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _default(option: Any) -> str:
    value = option.default
    if value is None or value == []:
        return "needed" if option.required else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
