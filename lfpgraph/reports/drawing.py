"""The operation graph as a file: DOT, GraphML, JSON or HTML."""

from __future__ import annotations

import io
import json
from pathlib import Path

import networkx as nx

from ..errors import printable
from ..writing import write_text
from .covered import CoverageReport
from .html import COLOURS, render

__all__ = ["FORMATS", "drawn_graph", "write_graph"]

FORMATS = (".dot", ".graphml", ".json", ".html")


def write_graph(report: CoverageReport, path: Path, depth: int = 0) -> None:
    """Write the graph in the format of the file's ending.

    Args:
        report: of the model.
        path: ends in one of `FORMATS`.
        depth: merge the operations of each module at this depth of the module path; 0 for none. HTML has every depth.
    """
    if path.suffix == ".html":
        write_text(path, render(report.data, report.classes, report.kinds, report.plan, drawing_only=True))
        return
    graph = drawn_graph(report, depth)
    if path.suffix == ".graphml":
        written = io.BytesIO()
        nx.write_graphml(graph, written)
        write_text(path, written.getvalue().decode())
    elif path.suffix == ".json":
        write_text(path, json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n")
    else:
        write_text(path, _dot(graph))


def drawn_graph(report: CoverageReport, depth: int = 0) -> nx.DiGraph:
    """`OpGraph.to_networkx()` with each operation's class, and modules merged below a depth.

    A merged node carries `operations` (how many) and the class of the worst of them.
    """
    graph = report.graph.to_networkx()
    names = {node.name: entry.name for node, entry in report.classes.items()}
    for name, attributes in graph.nodes.items():
        attributes.update({key: printable(text) for key, text in attributes.items()})
        attributes["class"] = names.get(name, attributes["op"])
    if depth == 0:
        return graph
    worst = ("none", "structural", "rule", "derived", "uncovered")
    merged = nx.DiGraph(**graph.graph)
    place = {}
    for name, attributes in graph.nodes.items():
        if attributes["class"] not in worst or not attributes["module"]:
            place[name] = name
            merged.add_node(name, **attributes, operations=1)
            continue
        path = ".".join(attributes["module"].split(".")[:depth])
        place[name] = path
        if path not in merged:
            merged.add_node(path, op=path, module=path, operations=0, **{"class": "none"})
        entry = merged.nodes[path]
        entry["operations"] += 1
        entry["class"] = max(entry["class"], attributes["class"], key=worst.index)
    merged.add_edges_from((place[a], place[b]) for a, b in graph.edges if place[a] != place[b])
    return merged


def _dot(graph: nx.DiGraph) -> str:
    lines = ["digraph model {", '  node [shape=box, style="rounded,filled", fontname="sans-serif"];']
    for name, attributes in graph.nodes.items():
        more = attributes.get("shape") or (
            f"{attributes['operations']} operations" if "operations" in attributes else ""
        )
        label = _quoted(f"{attributes['op'] if attributes['op'] != 'placeholder' else name}", more)
        colour = COLOURS.get(attributes["class"], "#cccccc")
        lines.append(f'  {_quoted(name)} [label={label}, color="{colour}", fillcolor="{colour}33"];')
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(*lines: str) -> str:
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines if line) + '"'
