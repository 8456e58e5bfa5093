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
from dataclasses import dataclass
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
from .support.together import Case, Joint
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


@dataclass
class Drawn:
    """A program, and what is done with it."""

    seed: int
    program: Program
    calls: list[Inputs]
    signals: list[list[Tensor]]
    how: str
    expected: Grads  # autograd's

    @property
    def composite(self) -> str:
        return COMPOSITES[self.seed % len(COMPOSITES)]

    @property
    def learns_by_its_loss(self) -> bool:
        """Whether parameters lead to outputs of one number alone: the objective then begins behind them (`graph.classes`)."""
        module = self.program.module()
        outputs = module(*leaves(self.calls[0]))
        learned = [
            any(
                g is not None
                for g in torch.autograd.grad(sum(o.sum() for o in some), [*module.parameters()], allow_unused=True)
            )
            for some in ([o for o in outputs if o.dim() > 0], [o for o in outputs if o.dim() == 0])
            if any(o.requires_grad for o in some)
        ]
        return learned == [False, True]

    def twins(self) -> list[tuple[str, Case]]:
        """The straight twin of each call, with the buffers that it found, and the way that it took."""
        module, found = self.program.module(), []  # type: Any, list[tuple[str, Case]]
        for k, (inputs, given) in enumerate(zip(self.calls, self.signals)):
            before = {name: b.clone() for name, b in module.named_buffers()}
            module.way.clear()
            module(*leaves(inputs))
            after = {name: b.clone() for name, b in module.named_buffers()}
            _set(module, before)
            twin = self.program.straight(module, module.way)
            found.append((str(module.way), Case(k, twin, inputs, given, self.program.source)))
            _set(module, after)
        return found

    def sum(self, answers: list[Grads]) -> Grads:
        """What the twins of the calls say, by the program's own names."""
        names, found = {name.replace(".", "_"): name for name, _ in self.program.module().named_parameters()}, {}
        for k, grads in enumerate(answers):
            for name, value in grads.items():
                name = names.get(name, name.replace("input", f"input {k}"))
                value = value * 2 if self.how == "twice" else value
                found[name] = found[name] + value if name in found else value
        return found


def straight(drawn: list[Drawn]) -> list[Grads]:
    """Feedback by walks over traces of the calls' straight twins; those that go one way are walked over one trace.

    Args:
        drawn: of one composite, all of them traced at once.
    """
    twins = [(i, way, case) for i, one in enumerate(drawn) for way, case in one.twins()]
    ways: dict[tuple[int, str], list[Case]] = {}
    for i, way, case in twins:
        ways.setdefault((i, way), []).append(case)
    joint = Joint([cases[0] for cases in ways.values()])
    graph = joint.trace()
    answers: dict[int, Grads] = {}
    for k in range(max(map(len, ways.values()))):
        now = Joint([cases[min(k, len(cases) - 1)] for cases in ways.values()])
        found = now.parted(walked(graph, now.module, now.inputs, now.signals, drawn[0].composite))
        answers |= {id(case): grads for case, grads in zip(now.cases, found)}
    return [one.sum([answers[id(case)] for i, _, case in twins if i == k]) for k, one in enumerate(drawn)]


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


def check(*seeds: int) -> None:
    """Random programs; those of several seeds, equal modulo 4, are traced as one.

    Raises:
        AssertionError: with the seed and the program's source.
    """
    drawn = [one for one in map(_draw, seeds) if all(bool(torch.isfinite(g).all()) for g in one.expected.values())]
    text = "trace"
    try:
        groups = [[one] for one in drawn if one.learns_by_its_loss]
        groups.append([one for one in drawn if not one.learns_by_its_loss])
        for one, want in ((one, want) for group in groups if group for one, want in zip(group, straight(group))):
            text = f"seed {one.seed}\n{one.program.source}"
            _check(one, want)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error


def _draw(seed: int, length: int = 10) -> Drawn:
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
    return Drawn(seed, program, calls, signals, how, expected)


def _check(one: Drawn, want: Grads) -> None:
    given = one.calls, one.signals, one.how
    found = run(wrapped(one.program, RECORDED, "live", hooked=True), *given)
    compare(f"true gradient, live, {one.how}", found, one.expected)
    for engine in ("live", "auto") if one.seed % 3 == 0 else ("live",):
        with _told() as told:
            found = run(wrapped(one.program, one.composite, engine), *given)
        if not told.limit:
            compare(f"{one.composite}, {engine}, {one.how}", found, want, one.program.source)


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
