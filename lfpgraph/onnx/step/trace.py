"""A whole training step as one ATen graph: forward, loss or reward, feedback, optimizer, traced along the walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...composites.composite import Composite
from ...engine.plan import Plan, make_plan
from ...engine.propagate import run_backward, run_forward
from ...engine.recurrent import takes_steps_as_one
from ...engine.static import functional_graph, on_fakes
from ...errors import InputError, OnnxError, one_line
from ...graph.graph import OpGraph
from ...numerics import stabilize
from ...tracing.recurrent import steps_as_one
from ...tracing.tracer import trace
from .decompositions import decomposition_table
from .optimizers import OPTIMIZERS, clip_by_norm

__all__ = ["REWARDS", "Step", "static", "trace_forward", "trace_step", "traced"]

# With their metrics.
REWARDS = {"softmax": ("loss", "accuracy"), "mse": ("loss",), "external": ("reward",), "signal": ("reward",)}
aten = torch.ops.aten
IGNORED = -100  # the label that torch's cross-entropy leaves out


@dataclass
class Step:
    """A traced step and what its inputs and results are.

    The graph takes the values (one for each entry of `inputs`), the target, the learning rate, then the optimizer's
    state; it returns new parameters, new buffers, new state, the model's outputs and the metrics.

    Attributes:
        module, graph: the functional ATen graph, and the model's graph that it was made from.
        inputs: ("parameter" or "buffer" or "constant" or "input", its name or index) for each value.
        fakes: fake tensors of all inputs, in order.
        parameters, buffers: names of the parameters that train and of the buffers that change.
        state: names of the optimizer's tensors, zeros at first: each of the shape of a parameter, or a scalar.
        metrics: names of the metrics.
        aliases: further names of tied parameters, each with the name that is used.
    """

    module: fx.GraphModule
    graph: OpGraph
    inputs: list[tuple[str, Any]]
    fakes: list[Tensor]
    parameters: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)


def traced(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], seed: int | None, as_one: Callable[[], bool] = bool
) -> tuple[OpGraph, list[tuple[str, Any]], list[int], list[Tensor], dict[str, str]]:
    """The graph with tied parameters as one: its inputs, for each placeholder its input, fakes of the inputs, aliases.

    `as_one`: whether the steps of recurrent layers are to be one operation.
    """
    with steps_as_one(as_one):
        graph = trace(model, args, kwargs)
    _check(graph, seed)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    fakes: dict[tuple[str, Any], Tensor] = {}
    entries: list[tuple[str, Any]] = []
    aliases: dict[str, str] = {}
    for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
        name = placeholder.target
        if placeholder.kind == "parameter":
            name = first.setdefault(id(tensors[name]), name)
            if name != placeholder.target:
                aliases[placeholder.target] = name
        entries.append((placeholder.kind, name))
        fakes.setdefault(entries[-1], node.meta["val"])
    inputs = list(fakes)
    return graph, inputs, [inputs.index(entry) for entry in entries], list(fakes.values()), aliases


def _check(graph: OpGraph, seed: int | None) -> None:
    if graph.tracer != "export" or graph.input_mutations:
        raise OnnxError("a model that branches on data, or writes into its inputs, has no fixed step to export.")
    random = sorted({str(n.target) for n in graph.operations() if _draws(n)})
    if random and seed is None:
        raise OnnxError(
            f"the model draws random numbers ({', '.join(random)}), dropout most likely. Set its rate to 0, call "
            "model.eval() first, or pass seed= to let onnxruntime draw them (other numbers than torch's)."
        )


def _draws(node: fx.Node) -> bool:
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return bool((node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0)) or 0)
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def static(function: Callable[..., Any], fakes: Sequence[Any]) -> fx.GraphModule:
    """A functional graph of a function of fake tensors, in operations that have translators."""
    try:
        module = functional_graph(function, fakes, decomposition_table())
    except RuntimeError as error:  # torch's own, of sizes that hang on values
        raise OnnxError(f"the step has no fixed graph: {type(error).__name__}: {one_line(error, 300)}") from error
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return module


def trace_forward(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], seed: int | None = None) -> Step:
    """The model's forward alone, in the mode the model is in; its inputs and results are the graph's."""
    graph, inputs, places, fakes, aliases = traced(model, args, kwargs, seed, lambda: True)

    def run(*values: Any) -> list[Any]:
        return list(fx.Interpreter(graph.module).run(*(values[i] for i in places)))[len(graph.mutations) :]

    step = Step(static(run, fakes), graph, inputs, fakes, aliases=aliases)
    step.parameters = [name for kind, name in inputs if kind == "parameter"]
    step.buffers = list(graph.mutations)
    return step


def trace_step(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], reward: str, optimizer: str, composite: Composite,
    options: dict[str, float], clip: float | None = None, seed: int | None = None,
) -> Step:  # fmt: skip
    """Trace forward, reward, feedback and optimizer as one graph.

    Args:
        reward: a key of `REWARDS`. optimizer: a key of `OPTIMIZERS`. options: the optimizer's numbers.
        clip: largest norm of all feedback together, as `clip_grad_norm_` has it.
        seed: of random operations, which are refused without one.

    Raises:
        OnnxError: the step cannot be one fixed graph. TraceError, NoRuleError, InputError: as for `wrap`.
    """
    graph, inputs, places, fakes, aliases = traced(model, args, kwargs, seed, lambda: takes_steps_as_one(composite))
    tensors = dict(model.named_parameters(remove_duplicate=False))
    trained = [i for i, (kind, name) in enumerate(inputs) if kind == "parameter" and tensors[name].requires_grad]
    wanted = {node for node, place in zip(graph.placeholder_nodes, places) if place in trained}
    if not wanted:
        raise InputError(f"{type(model).__name__} has no parameters that train.")
    plan = make_plan(graph, composite, wanted, values=graph.values_of_call(model, args, kwargs))
    if composite.online:
        raise OnnxError(f"{composite.name} gives feedback while forward runs; only what walks back can be exported.")
    rewarded = graph.rewarded_node
    if rewarded is None:
        raise OnnxError("the model has no float output with at least one dimension to give the reward to.")
    if rewarded not in plan.wanted:
        raise OnnxError("no reward can reach a parameter from the model's first float output; see lfpgraph.coverage.")
    if reward == "softmax":
        rewarded = _scores(plan, rewarded)
    trained = _reached(plan, places, trained, rewarded)
    output = rewarded.meta["val"]
    rule = OPTIMIZERS[optimizer]
    state = rule.state([inputs[i][1] for i in trained])
    with output.fake_mode:
        state_fakes = [torch.empty_like(fakes[trained[of]]) if of is not None else torch.empty(()) for _, of in state]
        target = torch.empty_like(output) if reward != "softmax" else torch.empty(output.shape[:-1], dtype=torch.int64)
        rate = torch.empty(())
    n = len(inputs)

    def run(*given: Any) -> list[Any]:
        values, target, rate, state = given[:n], given[n], given[n + 1], given[n + 2 :]
        outputs, calls, env = run_forward(plan, [values[i] for i in places])
        signal, metrics = _signal(reward, env[rewarded].float(), target)
        found = run_backward(plan, calls, env, {rewarded: signal.to(output.dtype)}, direction=-1)
        feedback = [_feedback(plan, found, places, i, values[i]) for i in trained]
        if clip is not None:
            feedback = clip_by_norm(feedback, clip)
        moved, new_state = rule.step([values[i] for i in trained], feedback, list(state), rate, options)
        mutated = len(graph.mutations)
        return [*moved, *outputs[:mutated], *new_state, *outputs[mutated:], *metrics.values()]

    all_fakes = [*fakes, target, rate, *state_fakes]
    step = Step(static(run, all_fakes), graph, inputs, all_fakes, aliases=aliases)
    step.parameters = [inputs[i][1] for i in trained]
    step.buffers = list(graph.mutations)
    step.state = [name for name, _ in state]
    step.metrics = list(REWARDS[reward])
    return step


def _scores(plan: Plan, output: fx.Node) -> fx.Node:
    """What an output that is itself a softmax over its last axis is made of, so that no softmax is taken twice."""
    source = output.args[0] if output.args else None
    last = output.target is aten.softmax.int and output.args[1] in (-1, output.meta["val"].dim() - 1)
    return source if last and any(unit.node is source for unit in plan.units) else output  # type: ignore[return-value]


def _reached(plan: Plan, places: list[int], trained: list[int], rewarded: fx.Node) -> list[int]:
    """Of the inputs that train, those that a signal arrives at; tried on the graph's fake values."""
    nodes = plan.graph.placeholder_nodes
    values = [node.meta["val"] for node in nodes]
    with on_fakes(values):
        _, calls, env = run_forward(plan, values)
        found = run_backward(plan, calls, env, {rewarded: torch.empty_like(env[rewarded])})
    arrived = {place for node, place in zip(nodes, places) if found.get(node) is not None}
    return [i for i in trained if i in arrived]


def _feedback(plan: Plan, found: Any, places: list[int], i: int, value: Tensor) -> Tensor:
    """What an optimizer reads as the gradient of input i: all its uses together."""
    total: Any = None
    for node, place in zip(plan.graph.placeholder_nodes, places):
        s = found.get(node)
        if place == i and s is not None:
            own = plan.feedback(node, value, s)
            total = own if total is None else total + own
    return total


def _signal(reward: str, out: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of the loss at the output (minus the signal of the reward), and the metrics."""
    if reward == "signal":
        return -target, {"reward": (target * out).sum()}
    if reward == "external":
        return -target / torch.where(out.abs() <= 1e-6, stabilize(out, 1e-6), out), {"reward": target.sum()}
    if reward == "mse":
        difference = out - target
        size = torch.scalar_tensor(out.numel(), dtype=out.dtype, device=out.device)
        return difference * (2 / size), {"loss": (difference * difference).mean()}
    counts = (target != IGNORED).to(out.dtype)
    n = counts.sum().clamp_min(1.0)
    chosen = (target.unsqueeze(-1) == torch.arange(out.shape[-1], device=out.device)).to(out.dtype)
    logs = torch.log_softmax(out, -1)
    signal = (torch.softmax(out, -1) - chosen) * (counts / n).unsqueeze(-1)
    right = (out.argmax(-1) == target).to(out.dtype)
    return signal, {"loss": -(logs * chosen).sum() / n, "accuracy": (right * counts).sum() / n}
