"""Names made to be taken for something else: markup, formulas, controls of a terminal, paths of any depth."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import networkx as nx
import pytest
import torch

import lfpgraph
from lfpgraph.cli.app import main
from lfpgraph.errors import LfpGraphError
from lfpgraph.reports import table
from lfpgraph.reports.analysis import analyse, render
from lfpgraph.reports.drawing import write_graph

from .support.hostile_names import NAMES, Named


@pytest.fixture(scope="module")
def report() -> lfpgraph.CoverageReport:
    return lfpgraph.coverage(Named(), torch.zeros(2, 3), name="<b>[/x]\x1b[2J")


def test_html(report: lfpgraph.CoverageReport) -> None:
    """No name opens or ends an element or a script."""
    page = report.to_html()
    assert page.count("<script") == 2 == page.count("</script>") and "<!--" not in page and "<b>" not in page
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0])
    assert set(NAMES) <= {part for name in data["strings"] for part in name.split("parts.")} | set(data["strings"])


def test_terminal(report: lfpgraph.CoverageReport) -> None:
    """Brackets are no markup, and nothing commands the terminal."""
    from rich.console import Console

    for shown in (report.table(limit=1000), render(analyse(report))):
        console = Console(width=1000, file=io.StringIO())
        console.print(shown)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[/x]" in text and not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


def test_a_name_of_megabytes_is_cut() -> None:
    """Rich takes minutes for it, and nobody reads it."""
    shown = table.line("a" * 10**7 + "[/x]\x1b").plain
    assert len(shown) < 11_000 and "10,000,005 letters" in shown and shown.endswith("[/x]\\x1b")


def test_files(report: lfpgraph.CoverageReport, tmp_path: Path) -> None:
    for kind in (".graphml", ".dot", ".json", ".html"):
        write_graph(report, tmp_path / f"g{kind}", depth=2)
    assert len(nx.read_graphml(tmp_path / "g.graphml")) > 13
    for line in (tmp_path / "g.dot").read_text().splitlines()[2:-1]:
        assert re.fullmatch(r'(  |\["\]|"(?:[^"\\\n]|\\.)*"|[\w =,;>\[\]-])*', line), line


def test_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lfpgraph.cli.app.app", lambda **_: (_ for _ in ()).throw(LfpGraphError("a\n\x1b[2J b")))
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "lfpgraph: a \\x1b[2J b\n"


def test_a_deep_tree(report: lfpgraph.CoverageReport) -> None:
    node = next(iter(report.classes))
    before = node.meta["nn_module_stack"]
    node.meta["nn_module_stack"] = {"k": (".".join(["a"] * 5000), "M")}
    try:
        assert len(report.to_html()) > 10_000
    finally:
        node.meta["nn_module_stack"] = before
