"""What holds for every test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
import torch

LONGEST = 300  # seconds of processor time that a test may take in its process


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that takes too long fails; the machine's other work does not count, nor what the system does for the test."""
    if not hasattr(signal, "setitimer"):  # Windows
        return (yield)

    def stop(*_: object) -> None:
        pytest.fail(f"the test took more than {LONGEST} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """engine="auto" looks at the first call whether it can go static, not after a hundred."""
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 0)


@pytest.fixture(params=["live", "static"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines, for what a user gets from either."""
    return str(request.param)
