"""The one look of the pages that this library writes: light or dark as the reader's system is, and fit for printing."""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib import resources
from typing import Any

__all__ = ["encodable", "head", "rendered"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--soft); } code { font-size: .92em; } img, svg { max-width: 100%; } summary { cursor: pointer; }
@media (max-width: 50rem) { table { display: block; overflow-x: auto; } }
@media print { body { max-width: none; margin: 0; } button, .tools { display: none; } .scroll { max-height: none !important; } }
"""


def head(title: str, style: str = "") -> str:
    """The beginning of a page, up to its first heading; `style` is what the page adds to the common one."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    )


def rendered(package: str, name: str, filters: dict[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """A page made of a template of a package, where every value is escaped; `head` is there to begin it with."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(autoescape=True)
    environment.filters.update(filters or {})
    environment.globals["head"] = lambda *args: markupsafe.Markup(head(*args))
    source = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return encodable(environment.from_string(source).render(**values))


def encodable(text: str) -> str:
    """A text that a file can hold: halves of characters, which names may have, are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
