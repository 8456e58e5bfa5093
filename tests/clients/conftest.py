"""Quiet clients, offline; and the table of docs/clients.md, made of what the tests have shown (`--page FILE`)."""

from __future__ import annotations

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true"
)

import pytest  # noqa: E402
import torch  # noqa: E402
from packaging.version import Version  # noqa: E402

_rows: dict[tuple[str, str, str], list[bool]] = defaultdict(list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", default=None, help="write the table of clients into this page")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(package, what, write): a row of the table in docs/clients.md")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """One thread, no words of the clients, and nothing of the library's left switched on afterwards."""
    torch.set_num_threads(1)
    for name in ("trl", "transformers", "datasets", "lightning.pytorch", "peft", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
    assert torch.is_grad_enabled() and not torch._C._is_any_autocast_enabled()


def _rows_of(item: pytest.Item) -> Iterator[tuple[str, str, str]]:
    callspec = getattr(item, "callspec", None)
    for mark in item.iter_markers("client"):
        package, what, write = (*mark.args, "", "")[:3]
        yield package, what.format(**callspec.params) if callspec is not None else what, write


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    if report.when == "call" or report.failed:
        for row in _rows_of(item):
            _rows[row].append(report.passed)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("--page")
    if page is not None:
        whole = session.config.args == ["tests/clients"] and not session.config.getoption("keyword")
        _write(Path(page), {row[:2] for item in session.items for row in _rows_of(item)} if whole else None)


HEAD = [
    "| client | since | up to | what | works | to write besides `lfpgraph.wrap(model)` |",
    "|---|---|---|---|---|---|",
]


def _write(page: Path, all_rows: set[tuple[str, str]] | None) -> None:
    """Put the table between the page's two marks; rows of tests that did not run now stay as they were.

    Args:
        all_rows: package and words of all rows there are, if this was a whole run: others go.
    """
    begin, end = "<!-- table -->", "<!-- end of table -->"
    before, _, rest = page.read_text().partition(begin)
    table, _, after = rest.partition(end)
    rows: dict[tuple[str, str], list[str]] = {}
    for line in table.strip().splitlines()[2:]:
        package, since, until, what, *others = line.strip("| ").split(" | ")
        if all_rows is None or (package, what) in all_rows:
            rows[package, what] = [since, until, *others]
    for (package, what, write), passed in _rows.items():
        own = version(package).partition("+")[0]
        versions = sorted({own, *rows.get((package, what), [])[:2]}, key=Version) if all(passed) else [own]
        rows[package, what] = [versions[0], versions[-1], "yes" if all(passed) else "no", write or "nothing"]
    lines = ["| " + " | ".join([k[0], v[0], v[1], k[1], *v[2:]]) + " |" for k, v in sorted(rows.items())]
    page.write_text("\n".join([before + begin, *HEAD, *lines, end + after]))
