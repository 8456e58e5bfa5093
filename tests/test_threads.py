"""Threads, processes and modes: a trace changes things for its own thread alone, and each mode holds or is refused clearly."""

from __future__ import annotations

import copy
import functools
import logging
import multiprocessing
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import lfpgraph
from lfpgraph.errors import TraceError, WrapError
from lfpgraph.threads import turns
from lfpgraph.threads.silence import quiet
from lfpgraph.tracing.flat import is_tracing, tracing
from lfpgraph.tracing.tracer import trace

from .support.helpers import in_threads


class Net(nn.Module):
    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        torch.manual_seed(wide)
        self.first, self.norm, self.last = nn.Linear(4, wide), nn.LayerNorm(wide), nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def data() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_several_threads_trace() -> None:
    def job(model: nn.Module) -> Any:
        shares = lfpgraph.attribute(model.eval(), data(), 0)
        lfpgraph.wrap(model, engine="static")(data()).sum().backward()
        return [shares, *(p.grad for p in model.parameters())]

    models = [Net(wide) for wide in (5, 6)]  # before the threads, which share one generator
    jobs = [functools.partial(job, copy.deepcopy(model)) for model in models]
    alone = [job(model) for model in models]
    together = in_threads(*jobs)
    for one, other in zip(alone, together):
        assert not isinstance(other, BaseException), other
        torch.testing.assert_close(one, other)
    assert "apply" not in vars(CheckpointFunction) and type(vars(Distribution)["_validate_args"]) is bool


def test_a_trace_changes_nothing_for_other_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stderr, warnings, log lines, checkpoints and checks of distributions are its own."""
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch.compile, in a test before, turns it off for good
    log, seen = logging.getLogger("torch.export.trial"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torch.export").addHandler(handler)
    inside, leave = threading.Event(), threading.Event()

    def speak() -> None:
        print("said", threading.current_thread().name, file=sys.stderr)
        log.error("logged %s", threading.current_thread().name)
        warnings.warn(f"warned {threading.current_thread().name}", stacklevel=1)

    def trace() -> None:
        with tracing(), quiet():
            inside.set()
            speak()
            Normal(0.0, -torch.ones(1))
            assert leave.wait(30)

    tracer = threading.Thread(target=trace, name="tracer")
    tracer.start()
    try:
        assert inside.wait(30)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            speak()
        with pytest.raises(ValueError, match="scale"):
            Normal(0.0, -torch.ones(1))
        x = torch.ones(2, requires_grad=True)
        y = checkpoint(torch.sin, x, use_reentrant=True)
        assert type(y.grad_fn).__name__ == "CheckpointFunctionBackward"
        y.sum().backward()
        assert x.grad is not None
    finally:
        leave.set()
        tracer.join()
        logging.getLogger("torch.export").removeHandler(handler)
    assert [str(w.message) for w in warned] == ["warned MainThread"] and seen == ["logged MainThread"]
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if not line.endswith("logged MainThread")] == [
        "said MainThread"
    ]  # torch 2.14 shows it


class Parts(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        part = nn.Linear(4, 4)
        self.parts = nn.ModuleList([part, part if shared else nn.Linear(4, 4), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.parametrize("shared", [False, True])
def test_a_call_that_waits_for_a_trace_is_no_part_of_it(shared: bool) -> None:
    """Torch's tracer stands in every module's call, in all threads, and keeps one stack of the modules that are being called."""
    plain, threads, found = Parts(shared), list[threading.Thread](), list[Any]()

    def call() -> None:
        try:
            found.append(model(data()))
        except BaseException as error:
            found.append(error)

    def meet(*_: Any) -> None:
        """While the model is traced: begin a call of it in another thread, and go on as soon as that waits."""
        if is_tracing():
            waiting, end = len(turns._waiting), time.monotonic() + 5
            threads.append(threading.Thread(target=call))
            threads[-1].start()
            while len(turns._waiting) == waiting and threads[-1].is_alive() and time.monotonic() < end:
                time.sleep(1e-3)

    plain.parts[0].register_forward_pre_hook(meet)
    model = lfpgraph.wrap(plain, engine="live")
    trace(plain, data())
    for thread in threads:
        thread.join(30)
    assert len(found) == len(threads) > 0
    for other in found:
        assert isinstance(other, Tensor), other
        torch.testing.assert_close(other, model(data()))


def test_quiet_in_turn() -> None:
    """Blocks that overlap in two threads leave everything as it was."""
    filters, first, second = list(warnings.filters), threading.Event(), threading.Event()

    def one() -> None:
        with quiet():
            first.set()
            assert second.wait(30)

    def other() -> None:
        assert first.wait(30)
        with quiet():
            second.set()
            threading.Event().wait(0.1)

    before = sys.stderr
    assert in_threads(one, other) == [None, None] and sys.stderr is before
    assert [f for f in warnings.filters if f in filters] == filters
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


def gradients(engine: str, steps: int = 2) -> list[Tensor]:
    model = lfpgraph.wrap(Net(), engine=engine)
    for _ in range(steps):
        model.zero_grad()
        model(data()).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _default(kind: str) -> Any:
    change, before = (
        (torch.set_default_dtype, torch.get_default_dtype()) if kind == "dtype" else (torch.set_default_device, None)
    )

    class Changed:
        def __enter__(self) -> None:
            change(torch.bfloat16 if kind == "dtype" else "meta")

        def __exit__(self, *_: Any) -> None:
            change(before)

    return Changed()


class Deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: Any) -> None:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: _default("dtype"),
    "default device": lambda: _default("device"),
    "deterministic": Deterministic,
    "anomaly without values": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(engine: str, mode: str) -> None:
    want, model, x = gradients("live"), lfpgraph.wrap(Net(), engine=engine), data()
    with MODES[mode]():
        for _ in range(2):
            model.zero_grad()
            model(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], want)


def test_tensors_without_memory(engine: str) -> None:
    """On the meta device a step works out shapes, as a plain model's does."""
    model = lfpgraph.wrap(Net(), engine=engine).to("meta")
    model(data().to("meta")).square().sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Anomaly")
def test_detect_anomaly() -> None:
    with torch.autograd.detect_anomaly():
        torch.testing.assert_close(gradients("live"), gradients("auto", 3))
        with pytest.raises(TraceError, match="cannot be traced under torch.autograd.detect_anomaly"):
            gradients("static")


def test_many_backward_passes_at_once(engine: str) -> None:
    model = lfpgraph.wrap(Net(), engine=engine)
    signals = torch.eye(15).reshape(15, 5, 3)
    with pytest.raises(WrapError, match="many backward passes at once"):
        torch.autograd.grad(model(data()), list(model.parameters()), signals, is_grads_batched=True)


def _step(model: nn.Module, answers: Any) -> None:
    try:
        model(data()).square().sum().backward()
        answers.put([p.grad.tolist() for p in model.parameters() if p.grad is not None])
    except Exception as error:
        answers.put(error)


@pytest.mark.skipif(sys.platform == "win32", reason="fork is of Unix")
@pytest.mark.filterwarnings("ignore:This process")
def test_fork(engine: str) -> None:
    """A child goes on with a wrapped model; one forked off in the middle of a trace says so, instead of waiting forever."""
    fork = multiprocessing.get_context("fork")
    model = lfpgraph.wrap(Net(), engine=engine)

    def child() -> Any:
        answers = fork.Queue()
        process = fork.Process(target=_step, args=(model, answers))
        process.start()
        found = answers.get(timeout=60)
        process.join()
        return found

    model(data()).square().sum().backward()
    want = [p.grad.tolist() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert child() == want
    inside, leave = threading.Event(), threading.Event()

    def trace() -> None:
        with tracing():
            inside.set()
            assert leave.wait(60)

    tracer = threading.Thread(target=trace)
    tracer.start()
    try:
        assert inside.wait(30)
        found = child()
        assert isinstance(found, TraceError) and "forked while" in str(found)
    finally:
        leave.set()
        tracer.join()
