"""What holds for every test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
import torch

from .support.siblings import mark_siblings

LONGEST = 300  # seconds of processor time that a test may take in its process
LONGEST_BY_THE_CLOCK = 3600  # seconds, of a test that waits for something that never comes; others may use the cores


def pytest_configure(config: pytest.Config) -> None:
    """torch.manual_seed notes the whole stack, with its source, for each kind of accelerator that may come: here come none."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device._lazy_call = lambda call, **options: None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny models gain nothing from threads, and lose much where others use the cores; a test may have set others."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest takes out what is slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases of which others show the same are slow ones."""
    mark_siblings(items, whole=not any("::" in arg for arg in config.args))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The collector leaves alone what is there before the first test: thousands of tests, torch, transformers.

    Otherwise it walks over all of that again and again, since a trace makes many small objects: a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that takes too long fails, and the others go on; the machine's other work hardly counts."""
    if not hasattr(signal, "setitimer"):  # Windows
        return (yield)

    def stop(number: int, frame: object) -> None:
        what = f"{LONGEST} s of processor time" if number == signal.SIGVTALRM else f"{LONGEST_BY_THE_CLOCK} s"
        pytest.fail(f"the test took more than {what}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_BY_THE_CLOCK)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """engine="auto" looks at the first call whether it can go static, not after a hundred."""
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 0)


@pytest.fixture(params=["live", "static"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines, for what a user gets from either."""
    return str(request.param)
