"""The coverage report: classes, figures, reasons, targets, exit statuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lfpgraph
from lfpgraph.reports.analysis import analyse
from lfpgraph.reports.classes import CLASSES
from lfpgraph.reports.drawing import drawn_graph, write_graph

from .support.custom_ops import opaque, triple
from .support.helpers import remove_rule, run_cli


class Residual(nn.Module):
    """Three residual blocks with two linear layers each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Odd(nn.Module):
    """One parameter for each reason to go without reward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.behind = nn.Linear(4, 4)
        self.detached = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.zero = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = opaque(self.behind(x)) + triple(self.first(x))
        return self.frozen(x) + self.detached(x).detach() + self.zero


def test_figures() -> None:
    """Totals add up; the FLOPs of a linear layer are 2 * n * i * o."""
    report = lfpgraph.coverage(
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(2, 5), composite="lfp-epsilon"
    )
    data = json.loads(json.dumps(report.to_json()))
    assert list(data)[:4] == ["model", "nodes", "operations", "parameters"]
    assert data["nodes"] == {"total": 3, "rule": 3, "structural": 0, "derived": 0, "none": 0, "uncovered": 0}
    assert data["summary"]["flops"]["total"] == 2 * 2 * 5 * 7 + 2 * 7 + 2 * 2 * 7 * 3
    assert data["parameters"]["rewarded"] == data["parameters"]["total"] == 4
    assert data["leaks"] == {"bias": 2, "epsilon": 2}
    assert report.covered and str(report).startswith("Sequential: 3 operations: 3 rule")


def test_reasons() -> None:
    """What has no rule is named with module and line; every parameter without reward has its reason."""
    report = lfpgraph.coverage(Odd(), torch.randn(2, 4))
    data = report.to_json()
    assert not report.covered and data["nodes"]["uncovered"] == 1 and data["nodes"]["derived"] == 1
    worst, derived = data["problems"]
    assert worst["operation"] == "lfptest.opaque.default" and worst["source"].startswith("test_coverage.py:")
    assert "@lfpgraph.rule(torch.ops.lfptest.opaque.default)" in worst["advice"]
    assert derived["operation"] == "lfptest.triple.default"
    reasons = {row["name"]: (row["reason"], row["where"]) for row in data["parameters"]["without_reward"]}
    assert reasons["behind.weight"][0] == "blocked" and "opaque" in reasons["behind.weight"][1][0]
    assert reasons["detached.weight"][0] == "blocked" and "detach" in reasons["detached.weight"][1][0]
    assert reasons["unused.weight"] == ("unused", []) and reasons["frozen.bias"] == ("frozen", [])
    assert not any(name.startswith("first") or name == "zero" for name in reasons)
    assert data["parameters"]["all_zero"] == ["zero"]
    assert data["leaks"]["uncovered"] == data["leaks"]["derived"] == 1
    bearing = data["summary"]["reward_bearing_nodes"]
    assert data["summary"]["covered_fraction"] == (bearing - 1) / bearing


def test_rule_covers() -> None:
    """A registered rule takes an operation out of the list."""

    @lfpgraph.rule(torch.ops.lfptest.opaque.default, needs_vjp=False)
    def double(call: Any, s: Tensor, x: Tensor) -> list[Tensor]:
        return [s * 2]

    try:
        data = lfpgraph.coverage(Odd(), torch.randn(2, 4)).to_json()
    finally:
        remove_rule(torch.ops.lfptest.opaque.default)
    assert data["nodes"]["uncovered"] == 0
    assert not any(row["name"].startswith("behind") for row in data["parameters"]["without_reward"])


def test_wrap_agrees() -> None:
    """The parameters said to be rewarded are those that get feedback."""
    model = Residual()
    report = lfpgraph.coverage(model, torch.randn(2, 8)).to_json()
    lfpgraph.wrap(model)(torch.randn(3, 8)).square().sum().backward()
    assert report["parameters"]["rewarded"] == sum(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("device", ["fake", "meta"])
def test_without_memory(device: str) -> None:
    """Fake and meta tensors give the report of real ones."""
    real = lfpgraph.coverage(Residual(), torch.randn(2, 8)).to_json()
    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        model, x = Residual(), torch.randn(2, 8)
    told = lfpgraph.coverage(model, x).to_json()
    assert told["nodes"] == real["nodes"] and told["summary"] == real["summary"]


def test_analysis() -> None:
    """Three blocks: three residual paths, a cut after each, and what stands behind it."""
    found = analyse(lfpgraph.coverage(Residual(), torch.randn(2, 8)))
    assert len(found["residual_paths"]) == 3 and found["depth"] == 13
    assert [row["operations_between"] for row in found["residual_paths"][1:]] == [3, 3]
    behind = {row["node"]: len(row["parameters_behind"]) for row in found["cut_points"]}
    assert behind["add_2"] == 2 and behind["add_1"] == 6 and behind["add"] == 10
    assert [row["users"] for row in found["fan_out"]] == [2, 2, 2]


def test_drawings(tmp_path: Path) -> None:
    """Every format can be read again and holds every operation; merged by module it holds the modules."""
    report = lfpgraph.coverage(Residual(), torch.randn(2, 8))
    for suffix in (".dot", ".graphml", ".json", ".html"):
        write_graph(report, tmp_path / f"g{suffix}")
    names = {node.name for node in report.graph.operations()}
    assert names <= set(nx.read_graphml(tmp_path / "g.graphml"))
    assert names <= set(nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges"))
    assert (tmp_path / "g.dot").read_text().count("->") == report.graph.to_networkx().number_of_edges()
    merged = drawn_graph(report, depth=2)
    assert merged.nodes["blocks.1"]["operations"] == 3 and merged.has_edge("blocks.0", "add")


def test_html_is_whole() -> None:
    """One file: nothing is loaded from elsewhere, and text of the model cannot close the script."""
    page = lfpgraph.coverage(Residual(), torch.randn(2, 8), name="</script><b>").to_html()
    assert "src=" not in page and "href=" not in page and "</script><b>" not in page
    assert all('<span class="dot" style="background:' in page and name in page for name in CLASSES)


SOURCE = """
import torch
from torch import nn
from tests.test_coverage import Odd

def good():
    return nn.Linear(3, 2), torch.randn(2, 3)

def alone():
    return nn.Sequential(nn.Linear(3, 2))

def bad():
    return Odd(), (torch.randn(2, 4),)

def wrong():
    return 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with targets of every kind, right and wrong."""
    (tmp_path / "coverage_targets.py").write_text(SOURCE)
    exported = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),))
    torch.export.save(exported, tmp_path / "linear.pt2")
    (tmp_path / "broken.pt2").write_bytes((tmp_path / "linear.pt2").read_bytes()[:300])
    tiny = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"intermediate_size": 16, "vocab_size": 30, "architectures": ["BertForSequenceClassification"]}
    for name, more in (("tiny", {}), ("remote", {"auto_map": {"AutoModel": "x.Y"}}), ("odd", {"model_type": "bertt"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(tiny | more))
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("not json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("coverage_targets:good", "coverage_targets:good"),
        ("coverage_targets:alone", "coverage_targets:alone"),
        ("linear.pt2", "linear.pt2"),
        ("tiny", "tiny"),
        ("tiny/config.json", "tiny/config.json"),
    ],
)
def test_targets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, model: str
) -> None:
    assert run_cli(monkeypatch, "coverage", target, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"] == model and data["nodes"]["uncovered"] == 0 and data["parameters"]["rewarded"] > 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bertt", "near it: bert"),
        ("empty", "no config.json"),
        ("nothing.json", "no such file"),
        ("list.json", "no model_type"),
        ("text.json", "not JSON"),
        ("remote", "never done"),
        ("odd", "'bertt' is not known"),
        ("broken.pt2", "no exported program"),
        ("nothing.pt2", "no such file"),
        ("coverage_targets:wrong", "must return an nn.Module"),
        ("coverage_targets:missing", "no function 'missing'"),
    ],
)
def test_bad_targets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, message: str
) -> None:
    """One line and status 1."""
    assert run_cli(monkeypatch, "coverage", target) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_uncovered_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, the HTML file and exit status 1, so that a CI can use it."""
    assert run_cli(monkeypatch, "coverage", "coverage_targets:bad", "--html", "new/report.html") == 1
    out = capsys.readouterr().out
    assert "1 cannot pass reward" in out and "detached.weight" in out
    assert "lfptest.opaque" in (folder / "new" / "report.html").read_text()


def test_graph_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "graph", "tiny", "--out", "g.dot", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["residual_paths"]) == 2
    assert (folder / "g.dot").read_text().startswith("digraph")
    assert run_cli(monkeypatch, "graph", "tiny", "--out", "g.png") == 1
    assert ".graphml" in capsys.readouterr().err


def test_tables() -> None:
    """The terminal's tables print, at any width."""
    from rich.console import Console

    for width in (60, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(lfpgraph.coverage(Odd(), torch.randn(2, 4)).table())
        assert "Covered:" in console.export_text()


def test_large_models_are_never_made_with_weights() -> None:
    """Where a constructor needs values, only a model that fits is built with them."""
    from lfpgraph.cli.fake_models import weightless
    from lfpgraph.errors import TargetError

    made: list[str] = []

    def build(size: int) -> Any:
        made.append(torch.zeros(1).device.type)
        if type(torch.zeros(1)) is not torch.Tensor:
            raise RuntimeError("needs values")
        return nn.Linear(size, size), None, None

    with pytest.raises(
        TargetError, match=r"big cannot be built without weights, and has 1,600,040,000 of them: needs values"
    ):
        weightless("big", lambda: build(40_000))
    assert made == ["cpu", "cpu", "meta"]
    assert type(weightless("small", lambda: build(4)).model.weight.data) is torch.Tensor
