"""Random graphs of registered operations: the gradient composite is autograd, and LFP feedback is finite."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import lfpgraph
from lfpgraph.composites import get_composite
from lfpgraph.plan import make_plan
from lfpgraph.propagate import run_backward, run_forward
from lfpgraph.trace import OpGraph, trace

from .fuzz import random_module

QUICK, MANY = 100, 2000
Grads = dict[str, Tensor]


def expected(module: nn.Module, inputs: tuple[Tensor, ...], signals: list[Tensor]) -> Grads:
    outputs = module(*inputs)
    pairs = [(out, s) for out, s in zip(outputs, signals) if out.requires_grad]
    parameters = dict(module.named_parameters())
    if not pairs or not parameters:
        return {}
    outs, given = zip(*pairs)
    found = torch.autograd.grad(outs, list(parameters.values()), given, allow_unused=True)
    return {name: g for name, g in zip(parameters, found) if g is not None}


def walked(graph: OpGraph, module: nn.Module, inputs: tuple[Tensor, ...], signals: list[Tensor], rules: str) -> Grads:
    state = dict(module.named_parameters())
    pairs = list(zip(graph.placeholder_nodes, graph.placeholders))
    plan = make_plan(graph, get_composite(rules), {n for n, p in pairs if p.kind == "parameter"})
    sources = {"input": inputs, "constant": graph.constants}
    with torch.no_grad():
        _, calls, env = run_forward(plan, [sources.get(p.kind, state)[p.target].detach() for _, p in pairs])
        at: dict[fx.Node, Tensor | None] = {}
        for node, s in zip(graph.user_output_nodes, signals):
            if isinstance(node, fx.Node):
                before = at.get(node)
                at[node] = s if before is None else before + s
        found = run_backward(plan, calls, env, at)
    signals_of = ((p.target, found.get(node)) for node, p in pairs if p.kind == "parameter")
    return {name: s for name, s in signals_of if s is not None}


def wrapped(module: nn.Module, inputs: tuple[Tensor, ...], signals: list[Tensor]) -> Grads:
    twin = lfpgraph.wrap(copy.deepcopy(module), "gradient")
    loss = sum((out * s).sum() for out, s in zip(twin(*inputs), signals))
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def check(seed: int) -> None:
    module, inputs, source = random_module(seed)
    generator = torch.Generator().manual_seed(seed)
    signals = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in module(*inputs)]
    try:
        want = expected(module, inputs, signals)
        if not dict(module.named_parameters()):
            return
        graph = trace(module, inputs, dynamic=False)
        found = {"walk": walked(graph, module, inputs, signals, "gradient")}
        if seed % 10 == 0:
            found["wrap"] = wrapped(module, inputs, signals)
        scale = max((float(g.abs().max()) for g in want.values()), default=0.0) or 1.0
        for way, grads in found.items():
            for name in {*want, *grads}:
                ours, theirs = grads.get(name), want.get(name)
                zero = torch.zeros(())
                difference = (zero if ours is None else ours) - (zero if theirs is None else theirs)
                assert float(difference.abs().max()) <= 1e-9 * scale, f"{way}: {name}"
        feedback = walked(graph, module, inputs, signals, "lfp-epsilon")
        assert all(bool(torch.isfinite(s).all()) for s in feedback.values()), "feedback is not finite"
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{source}") from error


@pytest.mark.parametrize("seed", range(QUICK))
def test_random_graph(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, MANY, 100))
def test_many_random_graphs(start: int) -> None:
    """A hundred at a time; every failure of the hundred is told."""
    failures = []
    for seed in range(start, start + 100):
        try:
            check(seed)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)
