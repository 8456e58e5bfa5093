"""The ways to a module's feedback: autograd, the walk over a trace, its program, a wrapped step; and their comparison."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

import lfpgraph
from lfpgraph.composites.composite import Composite, get_composite
from lfpgraph.engine.plan import Plan, make_plan
from lfpgraph.engine.program import make_program
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.graph.graph import OpGraph

__all__ = ["compare", "expected", "programmed", "walked", "wrapped"]

TOLERANCE, NARROW = 1e-9, 1e-6
Inputs = tuple[Tensor, ...]
Grads = dict[str, Tensor]


def leaves(inputs: Inputs) -> Inputs:
    return tuple(x.detach().clone().requires_grad_() for x in inputs)


def expected(module: nn.Module, inputs: Inputs, signals: list[Tensor]) -> Grads:
    """Autograd's answer for every parameter and input."""
    module = copy.deepcopy(module)
    own = leaves(inputs)
    pairs = [(out, s) for out, s in zip(module(*own), signals) if out.requires_grad]
    names = {f"input {i}": x for i, x in enumerate(own)} | dict(module.named_parameters())
    if not pairs:
        return {}
    outs, given = zip(*pairs)
    found = torch.autograd.grad(outs, list(names.values()), given, allow_unused=True)
    return {name: g for name, g in zip(names, found) if g is not None}


def prepare(graph: OpGraph, module: nn.Module, inputs: Inputs, rules: str) -> tuple[Plan, list[Tensor]]:
    """The plan, and the values of the graph's placeholders."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    pairs = list(zip(graph.placeholder_nodes, graph.placeholders))
    sources = {"input": inputs, "constant": graph.constants}
    values = [sources.get(p.kind, state)[p.target].detach() for _, p in pairs]
    wanted = {n for n, p in pairs if p.kind in ("parameter", "input")}
    return make_plan(graph, get_composite(rules), wanted, values=values), values


def named(graph: OpGraph, found: list[Tensor | None]) -> Grads:
    names = [f"input {p.target}" if p.kind == "input" else str(p.target) for p in graph.placeholders]
    return {name: s for name, s in zip(names, found) if s is not None}


def walked(graph: OpGraph, module: nn.Module, inputs: Inputs, signals: list[Tensor], rules: str) -> Grads:
    """The eager walk."""
    plan, values = prepare(graph, module, inputs, rules)
    with torch.no_grad():
        _, calls, env = run_forward(plan, values)
        at: dict[fx.Node, Tensor | None] = {}
        for node, s in zip(graph.user_output_nodes, signals):
            if isinstance(node, fx.Node):
                before = at.get(node)
                at[node] = s if before is None else before + s
        found = run_backward(plan, calls, env, at)
    pairs = [(node, value, found.get(node)) for node, value in zip(graph.placeholder_nodes, values)]
    return named(graph, [None if s is None else plan.feedback(node, value, s) for node, value, s in pairs])


def programmed(graph: OpGraph, module: nn.Module, inputs: Inputs, signals: list[Tensor], rules: str) -> Grads:
    """The traced feedback graph."""
    plan, values = prepare(graph, module, inputs, rules)
    program = make_program(plan, values)
    first = len(graph.output_nodes) - len(signals)
    with torch.no_grad():
        results = program.call_forward(*values)
        given = [signals[i - first] for i in program.signal_outputs]
        answers = dict(zip(program.wanted, program.call_feedback([*results[program.n_outputs :], *given])))
    return named(graph, [answers.get(i) for i in range(len(values))])


def wrapped(module: nn.Module, inputs: Inputs, signals: list[Tensor], rules: str | Composite, engine: str) -> Grads:
    """What a training step leaves in `.grad`."""
    twin, own = lfpgraph.wrap(copy.deepcopy(module), rules, engine=engine), leaves(inputs)
    loss = sum((out * s).sum() for out, s in zip(twin(*own), signals))
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    names = {f"input {i}": x for i, x in enumerate(own)} | dict(twin.named_parameters())
    return {name: x.grad for name, x in names.items() if x.grad is not None}


def compare(way: str, found: Grads, want: Grads, source: str = "") -> None:
    """Equal, relative to the largest entry; an absent one is zero; NaN and infinity in the same places.

    Args:
        source: of the module; one that casts to float32 is equal to float32's rounding.
    """
    tolerance = NARROW if ".float()" in source else TOLERANCE
    sizes = [float(g.abs().nan_to_num(0, 0, 0).max()) for g in want.values()]
    close = {"rtol": 0.0, "atol": tolerance * (max(sizes, default=0.0) or 1.0), "equal_nan": True}
    for name in {*want, *found}:
        some = want[name] if name in want else found[name]
        ours, theirs = (grads.get(name, torch.zeros_like(some)) for grads in (found, want))
        assert ours.shape == theirs.shape, f"{way}: {name} has shape {list(ours.shape)}, not {list(theirs.shape)}"
        assert torch.allclose(ours, theirs, **close), (
            f"{way}: {name} is off by {float((ours - theirs).abs().max()):.3g}"
        )
