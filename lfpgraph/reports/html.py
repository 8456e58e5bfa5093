"""The coverage report as one self-contained HTML page, with the modules as a tree in which no level is too long to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torch import Tensor, fx

from ..graph.graph import module_path, operation_name, source_line
from ..pages import rendered
from .classes import CLASSES, LEAKS, NodeClass
from .table import MEANINGS, count, percent

__all__ = ["Branch", "module_tree", "render"]

COLOURS = {
    "rule": "#2a9d5c",
    "structural": "#3a86c8",
    "derived": "#d99a00",
    "none": "#9aa0a6",
    "uncovered": "#d1242f",
}


def render(data: Mapping[str, Any], classes: Mapping[fx.Node, NodeClass], drawing_only: bool = False) -> str:
    """The page; with `drawing_only` just the module tree and the graph.

    Args:
        data, classes: as in `CoverageReport`.
    """
    return rendered(
        "lfpgraph.reports",
        "coverage.html",
        {"count": count, "percent": percent},
        data=data,
        classes=CLASSES,
        meanings=MEANINGS,
        colours=COLOURS,
        leak_meanings=LEAKS,
        drawing=json.dumps(_drawing(data["model"], classes), separators=(",", ":")).replace("<", "\\u003c"),
        script=resources.files("lfpgraph.reports").joinpath("graph.js").read_text(encoding="utf-8"),
        drawing_only=drawing_only,
    )


def _drawing(model: str, nodes: Mapping[fx.Node, NodeClass]) -> dict[str, Any]:
    """Operations, edges and module tree as compact arrays; strings are kept once each."""
    index = {node: i for i, node in enumerate(nodes)}
    strings: dict[str, int] = {}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    rows = [
        [
            text(operation_name(node).removeprefix("aten.").removesuffix(".default")),
            CLASSES.index(entry.name),
            text(_shape(node)),
            text(module_path(node)),
            text(source_line(node)),
            text(entry.family),
        ]
        for node, entry in nodes.items()
    ]
    edges = [[index[s], index[n]] for n in nodes for s in n.all_input_nodes if s in index]
    branches: list[Any] = []

    def grow(branch: Branch) -> int:
        place = len(branches)
        branches.append(None)
        members = [~grow(m) if isinstance(m, Branch) else index[m] for m in branch.members]
        branches[place] = [text(branch.name), members, branch.counts(nodes)]
        return place

    grow(module_tree(list(nodes), model))
    return {
        "strings": list(strings),
        "ops": rows,
        "edges": edges,
        "branches": branches,
        "classes": CLASSES,
        "colours": [COLOURS[c] for c in CLASSES],
    }


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return f"{list(map(str, value.shape))} {value.dtype}".replace("'", "").replace("torch.", "")
    return ""


WIDEST, DEEPEST = 100, 100  # members of a level, and levels: what is deeper bears the rest of its path as its name


@dataclass
class Branch:
    """A module, or some of its members where it has too many to show: branches and operation nodes, in order."""

    name: str
    members: list[Branch | fx.Node] = field(default_factory=list)

    def nodes(self) -> list[fx.Node]:
        """All operations below."""
        return [n for m in self.members for n in (m.nodes() if isinstance(m, Branch) else [m])]

    def counts(self, classes: Mapping[fx.Node, NodeClass]) -> list[int]:
        """How many operations of each of `CLASSES` are below."""
        counts = Counter(classes[n].name for n in self.nodes())
        return [counts[c] for c in CLASSES]


def module_tree(nodes: Sequence[fx.Node], name: str) -> Branch:
    """Operations sorted into their modules.

    A module stands where its first operation stands; one that is called again keeps that place. A level of more than
    `WIDEST` members is cut into runs.
    """
    root = Branch(name)
    known: dict[tuple[str, ...], Branch] = {(): root}
    for node in nodes:
        path = tuple(part for part in module_path(node).split(".", DEEPEST) if part)
        for i in range(1, len(path) + 1):
            if path[:i] not in known:
                known[path[:i]] = Branch(path[i - 1])
                known[path[: i - 1]].members.append(known[path[:i]])
        known[path].members.append(node)
    for branch in known.values():
        _cut(branch)
    return root


def _cut(branch: Branch) -> None:
    while len(branch.members) > WIDEST:
        size = max(-(-len(branch.members) // WIDEST), 20)
        runs = [branch.members[i : i + size] for i in range(0, len(branch.members), size)]
        branch.members = [_run(run) for run in runs]


def _run(members: list[Branch | fx.Node]) -> Branch:
    first, last = members[0].name, members[-1].name
    return Branch(f"{first} ... {last}", members)
