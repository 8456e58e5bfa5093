"""The modules of a graph as a tree in which no level is too long to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from ..graph.graph import module_path
from .classes import CLASSES, NodeClass

__all__ = ["Branch", "module_tree"]

WIDEST = 100


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
        path = tuple(part for part in module_path(node).split(".") if part)
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
