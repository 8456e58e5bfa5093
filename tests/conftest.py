"""What holds for every test."""

from __future__ import annotations

import gc

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny models gain nothing from threads, and lose much where others use the cores; a test may have set others."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The collector leaves alone what is there before the first test: thousands of tests, torch, transformers.

    Otherwise it walks over all of that again and again, since a trace makes many small objects: a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """engine="auto" looks at the first call whether it can go static, not after a hundred."""
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 0)


@pytest.fixture(params=["live", "static"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines, for what a user gets from either."""
    return str(request.param)
