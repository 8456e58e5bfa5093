"""The pages that reports write, in headless Chromium: nothing in a name runs, and each page shows what it is to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lfpgraph
from lfpgraph.demo.report import write_report
from lfpgraph.demo.training import Options, compare
from lfpgraph.explain import pictures
from lfpgraph.reports import explanation as sheet
from lfpgraph.reports.drawing import write_graph

from ..support.browser import SCREENSHOTS, node
from ..support.hostile_names import NAMES, Named

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def coverage(folder: Path) -> Path:
    path = folder / "coverage.html"
    path.write_text(lfpgraph.coverage(Named(), torch.zeros(2, 3), name=HOSTILE).to_html())
    return path


def graph(folder: Path) -> Path:
    write_graph(lfpgraph.coverage(Named(), torch.zeros(2, 3), name=HOSTILE), folder / "graph.html", depth=2)
    return folder / "graph.html"


def comparison(folder: Path) -> Path:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(60, 4)
    y = x.argmax(1).clamp(max=2)
    result = lfpgraph.compare(
        model, (x[:40], y[:40]), (x[40:], y[40:]), ways=("lfp", "backprop"), steps=4, name=HOSTILE
    )
    path = folder / "comparison.html"
    path.write_text(result.to_html())
    return path


def explanation(folder: Path) -> Path:
    x = torch.rand(1, 1, 8, 8)
    found = sheet.places(x[0], "image")
    figure = pictures.side_by_side(x[0], x[0])
    parts = [sheet.section(pictures.figure_html(figure), [{**found[0], "name": HOSTILE}], None, HOSTILE)]
    (folder / "explanation.html").write_text(sheet.page(HOSTILE, parts, [{"input": HOSTILE}]))
    return folder / "explanation.html"


def training(folder: Path) -> Path:
    x = torch.randn(60, 4)
    y = x.argmax(1).clamp(max=2)
    data = ((x[:40], y[:40]), (x[40:], y[40:]))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    found = compare(HOSTILE, model, *data, nn.functional.cross_entropy, Options(epochs=2, batch_size=20))
    return write_report([found], folder / "training.html", HOSTILE)


@pytest.mark.parametrize("make", [coverage, graph, comparison, explanation, training])
def test_a_page(make: Callable[[Path], Path], tmp_path: Path) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    found: dict[str, Any] = json.loads(node("look.mjs", str(make(tmp_path)), str(SCREENSHOTS / f"{make.__name__}.png")))
    assert not found["errors"] and not found["dialogs"] and not found["asked"]
    assert HOSTILE in found["text"]
    if make is coverage:
        assert any(name in found["text"] for name in NAMES[:5])
