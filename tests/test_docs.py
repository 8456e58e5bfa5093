"""The documents do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lfpgraph
from tools.commands_page import PAGE, page
from tools.rules_table import REGENERATE, is_current

from .support.helpers import remove_rule

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SLOW = ("spiking",)  # seconds to minutes; notebooks are slow, too, and `make docs` runs them by Jupyter itself
NOTEBOOKS = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb"))
RUN = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if "```python\n" in path.read_text() and path.name not in ("onnx.md", "design.md", "experiments.md", "zoo.md")
)  # the others show code that needs files of the reader's own


def test_pages_that_are_made_are_current() -> None:
    if hasattr(torch.ops.aten, "cholesky"):  # torch 2.14 has it no more, and a row less
        assert is_current(), REGENERATE
    assert PAGE.read_text() == page(), "python -m tools.commands_page writes the page anew"


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(
        r"`((?:benchmarks|examples|lfpgraph|models_zoo|rules|tests|tools)/[\w/*]*(?:\.(?:py|csv|txt|npz|cpp|mjs))?)",
        text,
    )
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    missing = [name for name in named if not list(ROOT.glob(name))]
    assert missing + [name for name in linked if not (page.parent / name).exists()] == []


def test_the_readme_is_short_and_names_what_ci_runs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 80 and len(text.split()) <= 700
    assert "make demo" in text and "make test" in text and "lfpgraph.wrap(model)" in text
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.M)) <= targets


def _code(page: str) -> list[str]:
    if page.endswith(".ipynb"):
        cells = json.loads((DOCS / page).read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive", "ignore:\\s*Setting forward, backward hooks")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (Path(name).stem in SLOW or name in NOTEBOOKS))
        for name in (*RUN, *NOTEBOOKS)
    ],
)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block or cell of the page, in order, in one namespace and an empty folder."""
    code = _code(page)
    for library in re.findall(r"^(?:from|import) (captum|transformers|snntorch|onnxruntime)", "\n".join(code), re.M):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {"__name__": Path(page).stem}
    torch.manual_seed(0)
    try:
        for block in code:
            exec(compile(block, page, "exec"), names)
    finally:
        if hasattr(torch.ops.docs, "quarters"):
            remove_rule(torch.ops.docs.quarters.default)


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    ends = {place.rpartition(".")[2] for place in shown}
    modules = {name: getattr(getattr(lfpgraph, name), "__name__", "") for name in lfpgraph.__all__ if name not in ends}
    missing = [name for name, own in modules.items() if not any(f"{place}.".startswith(f"{own}.") for place in shown)]
    assert [name for name in missing if name != "LfpGraphError"] == []  # it is on the page of all errors
