"""The coverage report as one self-contained HTML page, with the modules as a tree in which no level is too long to look at."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torch import Tensor, fx

from ..engine.plan import Plan
from ..graph.graph import module_path, operation_name, source_line
from ..graph.regions import find_regions
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


def render(
    data: Mapping[str, Any],
    classes: Mapping[fx.Node, NodeClass],
    kinds: Mapping[str, str],
    plan: Plan,
    drawing_only: bool = False,
) -> str:
    """The page; with `drawing_only` just the module tree and the graph.

    Args:
        data, classes, kinds, plan: as in `CoverageReport`.
    """
    regions = [
        (f"{region.family.name}, written out", region.nodes)
        for region in find_regions(plan.graph)
        if all(node in classes for node in region.nodes) and len(region.nodes) > 1
    ]
    return rendered(
        "lfpgraph.reports",
        "coverage.html",
        {"count": count, "percent": percent},
        data=data,
        classes=CLASSES,
        meanings=MEANINGS,
        colours=COLOURS,
        leak_meanings=LEAKS,
        drawing=json.dumps(
            _drawing(module_tree(list(classes), data["model"], kinds, regions), classes), separators=(",", ":")
        ).replace("<", "\\u003c"),
        script=resources.files("lfpgraph.reports").joinpath("graph.js").read_text(encoding="utf-8"),
        drawing_only=drawing_only,
    )


def _drawing(tree: Branch, nodes: Mapping[fx.Node, NodeClass]) -> dict[str, Any]:
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
        branches[place] = [text(branch.name), members, branch.counts(nodes), branch.times]
        return place

    grow(tree)
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
    """A module, a function that is written out, equal neighbours, or some of the members of what has too many to show.

    Attributes:
        times: how many equal branches it stands for, where they are folded into one; else 1.
    """

    name: str
    members: list[Branch | fx.Node] = field(default_factory=list)
    times: int = 1

    def nodes(self) -> list[fx.Node]:
        """All operations below."""
        return [n for m in self.members for n in (m.nodes() if isinstance(m, Branch) else [m])]

    def counts(self, classes: Mapping[fx.Node, NodeClass]) -> list[int]:
        """How many operations of each of `CLASSES` are below."""
        counts = Counter(classes[n].name for n in self.nodes())
        return [counts[c] for c in CLASSES]

    def form(self) -> tuple[Any, ...]:
        """What equal branches have in common: the operations and their sizes, and how they lie in one another."""
        return tuple(m.form() if isinstance(m, Branch) else (operation_name(m), _shape(m)) for m in self.members)


def module_tree(
    nodes: Sequence[fx.Node],
    name: str,
    kinds: Mapping[str, str] | None = None,
    regions: Sequence[tuple[str, Sequence[fx.Node]]] = (),
) -> Branch:
    """Operations sorted into their modules.

    A module stands where its first operation stands; one that is called again keeps that place. Equal modules that follow one
    another are folded into one. A level of more than `WIDEST` members is cut into runs.

    Args:
        kinds: the class of each module, by its path, to be shown beside its name.
        regions: (name, operations) of functions that are written out, each of which becomes one branch.
    """
    root = Branch(name)
    known: dict[tuple[str, ...], Branch] = {(): root}
    region_of = {node: i for i, (_, members) in enumerate(regions) for node in members}
    written: dict[int, Branch] = {}

    def home(path: tuple[str, ...]) -> Branch:
        for i in range(1, len(path) + 1):
            if path[:i] not in known:
                kind = (kinds or {}).get(".".join(path[:i]), "")
                known[path[:i]] = Branch(f"{path[i - 1]} {kind}".strip())
                known[path[: i - 1]].members.append(known[path[:i]])
        return known[path]

    for node in nodes:
        region = region_of.get(node)
        if region is None:
            home(_path(node)).members.append(node)
            continue
        if region not in written:
            shown, members = regions[region]
            written[region] = Branch(shown)
            paths = [_path(member) for member in members]
            common = next(i for i in range(len(paths[0]), -1, -1) if all(p[:i] == paths[0][:i] for p in paths))
            home(paths[0][:common]).members.append(written[region])
        written[region].members.append(node)
    for branch in known.values():
        _fold(branch, branch is root)
        _cut(branch)
    return root


def _path(node: fx.Node) -> tuple[str, ...]:
    return tuple(part for part in module_path(node).split(".", DEEPEST) if part)


def _fold(branch: Branch, root: bool) -> None:
    """Put neighbours that are equal into one branch each."""
    folded: list[Branch | fx.Node] = []
    for _, run in itertools.groupby(branch.members, key=lambda m: m.form() if isinstance(m, Branch) else m):
        same = list(run)
        first, last = same[0], same[-1]
        if len(same) > 1 and isinstance(first, Branch) and isinstance(last, Branch):
            start, end = first.name.split(" ")[0], last.name.split(" ")[0]
            folded.append(Branch(first.name.replace(start, f"{start} ... {end}", 1), same, len(same)))
        else:
            folded += same
    if len(folded) > 1 or len(branch.members) < 2 or not isinstance(folded[0], Branch):
        branch.members = folded
    else:  # all of it is equal: the branch itself is the fold
        branch.times = folded[0].times
        kind = folded[0].members[0].name.partition(" ")[2]  # type: ignore[union-attr]
        branch.name = f"{branch.name.partition(' ')[0]} {kind}" if kind and not root else branch.name


def _cut(branch: Branch) -> None:
    while len(branch.members) > WIDEST:
        size = max(-(-len(branch.members) // WIDEST), 20)
        runs = [branch.members[i : i + size] for i in range(0, len(branch.members), size)]
        branch.members = [_run(run) for run in runs]


def _run(members: list[Branch | fx.Node]) -> Branch:
    first, last = members[0].name, members[-1].name
    return Branch(f"{first} ... {last}", members)
