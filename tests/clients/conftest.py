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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    if report.when == "call" or report.failed:
        callspec = getattr(item, "callspec", None)
        for mark in item.iter_markers("client"):
            package, what, write = (*mark.args, "", "")[:3]
            if callspec is not None:
                what = what.format(**callspec.params)
            _rows[package, what, write].append(report.passed)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("--page")
    if page is not None:
        _write(Path(page))


def _write(page: Path) -> None:
    """Put the table between the page's two marks; rows of tests that did not run now stay as they were."""
    begin, end = "<!-- table -->", "<!-- end of table -->"
    before, _, rest = page.read_text().partition(begin)
    table, _, after = rest.partition(end)
    rows = {tuple(line.split(" | ")[::2][:2]): line for line in table.strip().splitlines()[2:]}
    for (package, what, write), passed in _rows.items():
        works = "yes" if all(passed) else "no"
        line = f"| {package} | {version(package).partition('+')[0]} | {what} | {works} | {write or 'nothing'} |"
        rows[tuple(line.split(" | ")[::2][:2])] = line
    head = ["| client | tried with | what | works | to write besides `lfpgraph.wrap(model)` |", "|---|---|---|---|---|"]
    page.write_text("\n".join([before + begin, *head, *(rows[key] for key in sorted(rows)), end + after]))
