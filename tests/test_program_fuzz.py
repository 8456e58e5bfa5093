"""Random programs in live Python: the true gradient is autograd's, and LFP's feedback that of straight twins.

They branch and loop on values, call parts several times, have hooks, keep values on modules, write into views, and are
called several times before or between backward passes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.composite import Composite
from lfpgraph.tracing.tracer import trace

from .support.fuzz_programs import Program, random_program
from .support.helpers import RECORDED
from .support.seeds import check_all
from .support.ways import Grads, Inputs, compare, leaves, walked

COMPOSITES = ("lfp-epsilon", "attnlrp", "lfp-gamma", "epsilon-plus")
QUICK, MANY = 24, 500
# The log's one line for what docs/design.md names under "Limits": a write to a part of what no one sees whole.
LIMIT = "is used as it is"


def run(module: nn.Module, calls: list[Inputs], signals: list[list[Tensor]], how: str) -> Grads:
    """What some calls leave in `.grad`.

    Args:
        how: "together", one backward pass for all calls; "apart", one after each; "twice", all of them twice.
    """
    found = [leaves(inputs) for inputs in calls]
    losses: list[Tensor] = []
    for own, given in zip(found, signals):
        losses.append(sum((out * s).sum() for out, s in zip(module(*own), given)))  # type: ignore[arg-type]
        if how == "apart" and losses[-1].requires_grad:
            losses[-1].backward()
    loss = sum(losses)
    if how != "apart" and isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward(retain_graph=how == "twice")
        if how == "twice":
            loss.backward()
    names: dict[str, Tensor] = dict(module.named_parameters())
    names |= {f"input {k} {i}": x for k, own in enumerate(found) for i, x in enumerate(own)}
    return {name: x.grad for name, x in names.items() if x.grad is not None}


def straight(program: Program, calls: list[Inputs], signals: list[list[Tensor]], how: str, rules: str) -> Grads:
    """The same by walks over traces of the calls' straight twins."""
    module, found, graphs = program.module(), {}, {}  # type: Any, Grads, dict[str, Any]
    for k, (inputs, given) in enumerate(zip(calls, signals)):
        before = {name: b.clone() for name, b in module.named_buffers()}
        module.way.clear()
        module(*leaves(inputs))
        after = {name: b.clone() for name, b in module.named_buffers()}
        _set(module, before)
        twin, key = program.straight(module, module.way), str(module.way)
        _set(module, after)
        if key not in graphs:
            graphs[key] = trace(twin, inputs, dynamic=False)
        answers = walked(graphs[key], twin, inputs, given, rules)
        names = {name.replace(".", "_"): name for name, _ in module.named_parameters()}
        for name, value in answers.items():
            name = names.get(name, name.replace("input", f"input {k}"))
            value = value * 2 if how == "twice" else value
            found[name] = found[name] + value if name in found else value
    return found


def _set(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


def wrapped(program: Program, rules: str | Composite, engine: str, hooked: bool = False) -> nn.Module:
    return lfpgraph.wrap(program.module(hooked), rules, engine=engine)


class _Told(logging.Handler):
    """Whether the limit was told."""

    limit = False

    def emit(self, record: logging.LogRecord) -> None:
        self.limit |= LIMIT in record.getMessage()


@contextlib.contextmanager
def _told() -> Iterator[_Told]:
    log, handler = logging.getLogger("lfpgraph"), _Told()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def check(seed: int, length: int = 10) -> None:
    """One random program.

    Raises:
        AssertionError: with the seed and the program's source.
    """
    program, draw = random_program(seed, length), random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    calls = [program.inputs]
    calls += [tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in calls[0]) for _ in range(2)]
    calls, how = calls[: draw.choice((1, 2, 2, 3))], draw.choice(("together", "apart", "twice"))
    try:  # other inputs go other ways, in which not all of the program need run
        signals = [_signals(program.module()(*leaves(inputs)), generator) for inputs in calls]
        expected = run(program.module(hooked=True), calls, signals, how)
    except (RuntimeError, IndexError):
        calls, how = calls[:1], "together"
        signals = [_signals(program.module()(*leaves(calls[0])), generator)]
        expected = run(program.module(hooked=True), calls, signals, how)
    if not all(bool(torch.isfinite(g).all()) for g in expected.values()):
        return
    composite, what = COMPOSITES[seed % len(COMPOSITES)], ""
    try:
        what = f"true gradient, live, {how}"
        compare(what, run(wrapped(program, RECORDED, "live", hooked=True), calls, signals, how), expected)
        want = straight(program, calls, signals, how, composite)
        for engine in ("live", "auto") if seed % 3 == 0 else ("live",):
            what = f"{composite}, {engine}, {how}"
            with _told() as told:
                found = run(wrapped(program, composite, engine), calls, signals, how)
            if not told.limit:
                compare(what, found, want, program.source)
    except Exception as error:
        text = f"seed {seed}, {what}: {type(error).__name__}: {error}\n{program.source}"
        raise AssertionError(text) from error


def _signals(outputs: Any, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outputs]


# 1001: a write at places made of values, and a hook; 1099: a region through a part with backward hooks, an LSTM's output;
# 30079: a tensor and a view of it, both read after a write to the view
@pytest.mark.parametrize("seed", [*range(QUICK), 1001, 1017, 1099, 30079])
def test_random_program(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1000 + MANY, 100))
def test_many_random_programs(start: int) -> None:
    """A hundred at a time; every failure of the hundred is told."""
    check_all(check, start)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_backward_hooks_that_look_on_change_nothing(composite: str) -> None:
    """Torch puts a function around such a module, which hands on what comes in."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Softplus(), nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 2)]
    plain, x = nn.Sequential(*layers).double(), torch.randn(3, 4, dtype=torch.float64)
    hooked, seen = copy.deepcopy(plain), []
    for module in hooked.modules():
        module.register_full_backward_hook(lambda *given: seen.append(given))
    found = [
        run(
            lfpgraph.wrap(net, composite, engine="live"),
            [(x,)],
            [[torch.ones(3, 2, dtype=torch.float64)[0]] * 3],
            "apart",
        )
        for net in (hooked, plain)
    ]
    assert len(seen) == 7
    compare(composite, *found)


class SharedWithTheIdle(nn.Module):
    """An operation that an output reads, and what leads to a detached value only."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(3, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        shared = torch.tanh(-y)
        aim = shared * 1.5 - 0.25
        aim = (aim + aim.mean()).square()
        return (x - aim.detach()).square() @ self.w, nn.functional.leaky_relu(shared, 0.1).prod()


def test_what_leads_to_a_detached_value_takes_nothing_from_the_way_it_shares() -> None:
    """Both have the same autograd nodes; found by seed 1200, where the input's feedback was zero."""
    module, inputs = SharedWithTheIdle(), (torch.randn(2, 3).double(), torch.randn(2, 3).double())
    signals = _signals(module(*inputs), torch.Generator().manual_seed(0))
    walk = walked(trace(module, inputs, dynamic=False), module, inputs, signals, "lfp-epsilon")
    want = {name.replace("input", "input 0"): g for name, g in walk.items()}
    assert bool(want["input 0 1"].any())
    found = run(lfpgraph.wrap(module, "lfp-epsilon", engine="live"), [inputs], [signals], "together")
    compare("live", found, want)
