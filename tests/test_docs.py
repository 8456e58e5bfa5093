"""The documents do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.rules_table import REGENERATE, is_current

from .support.helpers import remove_rule

ROOT = Path(__file__).parents[1]


def test_rules_page_is_current() -> None:
    assert is_current(), REGENERATE


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(
        r"`((?:benchmarks|examples|lfpgraph|models_zoo|rules|tests|tools)/[\w/*]*(?:\.(?:py|csv|txt|npz))?)", text
    )
    linked = [str((page.parent / target).relative_to(ROOT)) for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    assert [name for name in (*named, *linked) if not list(ROOT.glob(name))] == []


def test_guide_to_rules_runs() -> None:
    """Every block of the page, in order, in one namespace."""
    page = (ROOT / "docs" / "writing-rules.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {"__name__": "writing_rules"}
    try:
        for block in blocks:
            exec(compile(block, "writing-rules.md", "exec"), names)
    finally:
        remove_rule(torch.ops.docs.quarters.default)


def test_page_on_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for docs/training.md, in a folder of its own."""
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    assert len(blocks) == 4
    names: dict[str, Any] = {"__name__": "training"}
    for block in blocks:
        exec(compile(block, "training.md", "exec"), names)


@pytest.mark.parametrize("page", ["rewards.md", pytest.param("spiking.md", marks=pytest.mark.slow)])
def test_page_runs(page: str) -> None:
    """Every block of the page, in order, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) >= 2
    names: dict[str, Any] = {"__name__": page.removesuffix(".md")}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("name", ["attribution", "from-zennit-and-lxt"])
def test_pages_on_explaining_run(name: str) -> None:
    """Every block of the page, in order, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.S)
    assert blocks
    names: dict[str, Any] = {"__name__": name}
    for block in blocks:
        exec(compile(block, f"{name}.md", "exec"), names)
