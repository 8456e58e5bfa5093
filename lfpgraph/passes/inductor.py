"""A program's graphs through inductor, with the sizes left open that the trace left open.

torch.compile would look at the graphs anew: it takes equal sizes for one symbol, a batch of one for a constant, and guards
every argument at every call. The graphs here are traced already, and whether they fit a call is decided before
(`graph.sizes`), so inductor gets them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch.fx.experimental import _config as _fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from ..kernels import DECOMPOSITIONS, define, floor_and_unit, scale_by_floored_size
from ..threads.silence import quiet
from .fastcalls import quick_products
from .nodes import hint

__all__ = ["compile_program"]

Boxed = Callable[[list[Any]], list[Any]]
_WORTH_A_CALL = 1 << 16  # entries of a weight, from which on the two numbers it is scaled by are worked out by a call


def _floor_and_unit(w: Tensor, share: float, unit: float) -> Tensor:
    floor, own = floor_and_unit(w, share, unit)
    return torch.stack([floor, torch.ones_like(floor) if own is None else own])


define("floor_and_unit(Tensor w, float share, float unit) -> Tensor", _floor_and_unit, lambda w, *_: w.new_empty(2))


def _scaled(s: Tensor, w: Tensor, share: float, unit: float) -> Tensor:
    """`scale_by_floored_size`. Inductor would work out the root of a weight's norm anew for its entries."""
    if w.is_complex() or w.device.type != "cpu" or w.numel() < _WORTH_A_CALL:
        return scale_by_floored_size(s, w, share, unit)
    floor, own = torch.ops.lfpgraph.floor_and_unit(w, share, unit).unbind(0)
    return s * (torch.maximum(w.abs(), floor) * own)


def compile_program(
    forward: fx.GraphModule, feedback: fx.GraphModule, n_outputs: int, wanted: Sequence[int]
) -> tuple[Callable[..., list[Any]], Boxed]:
    """Compile both graphs of a program, which stay as they are.

    Args:
        forward: values of the placeholders -> [outputs..., saved...].
        feedback: [saved..., signals...] -> signals.
        n_outputs: how many of forward's results are outputs.
        wanted: for each of feedback's results, the position of the value that it is the signal of.

    Returns:
        Forward, called with the values, and feedback, called with one list that it empties.
    """
    values = _examples(forward)
    run_forward, strides = _compile(quick_products(forward, walk=False), values, n_outputs)
    fit_values = [_fit(value) for value in values]
    saved = _examples(feedback)
    for i, stride in enumerate(strides[n_outputs:]):
        if stride is not None:
            saved[i] = _laid_out(saved[i], stride)
    n_saved = len(strides) - n_outputs
    likes = [values[i] for i in wanted]
    run_feedback, _ = _compile(_as_laid_out(quick_products(feedback, walk=True), likes), saved, len(likes))

    def call_forward(*values: Any) -> list[Any]:
        return run_forward([fit(value) if fit is not None else value for fit, value in zip(fit_values, values)])

    def call_feedback(inputs: list[Any]) -> list[Any]:
        inputs[n_saved:] = [s.contiguous() for s in inputs[n_saved:]]
        return run_feedback(inputs)

    return call_forward, call_feedback


def _examples(module: fx.GraphModule) -> list[Any]:
    return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]


def _as_laid_out(feedback: fx.GraphModule, likes: Sequence[Any]) -> Callable[..., list[Any]]:
    """The graph, its results in order in memory where the values that they belong to are.

    A convolution's weight gets its signal channel by channel. Autograd would copy that for `.grad`, after it was scaled.
    """

    def run(*given: Any) -> list[Any]:
        signals = feedback(*given)
        return [
            s.contiguous() if isinstance(s, Tensor) and like.is_contiguous() else s for s, like in zip(signals, likes)
        ]

    return run


def _compile(
    module: Callable[..., Any], examples: Sequence[Any], n_visible: int
) -> tuple[Boxed, list[list[int] | None]]:
    """The compiled graph, and for each of its results the strides at the traced sizes, None for a number.

    The first `n_visible` results keep the traced layout; for the others inductor chooses the order of their axes, and on a GPU
    it may leave room between rows.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.utils import output_node
    from torch._inductor.virtualized import V

    mode = next(v.fake_mode for v in examples if hasattr(v, "fake_mode"))
    open_sizes = _fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    draws = config.patch(fallback_random=config.fallback_random or _is_on_cpu(examples))  # type: ignore[attr-defined]
    with quiet(), torch.no_grad(), open_sizes, draws, tracing(TracingContext(mode)), mode:
        table = {**select_decomp_table(), **DECOMPOSITIONS, torch.ops.lfpgraph.scale_by_floored_size.default: _scaled}
        lowered = make_fx(module, decomposition_table=table, tracing_mode="real")(*examples)
        with V.set_fake_mode(mode):
            joint_graph_passes(lowered)
        visible: Any = output_node(lowered).args[0]
        seen = [i for i, result in enumerate(visible[:n_visible]) if isinstance(result, fx.Node)]
        output_node(lowered).meta["user_visible_output_idxs"] = seen
        with TracingContext.report_output_strides() as strides:
            run = compile_fx_inner(lowered, list(examples))
    return run, [None if s is None else [int(n) for n in s] for s in strides or ()]  # type: ignore[return-value]


def _is_on_cpu(examples: Sequence[Any]) -> bool:
    """Whether all is on a CPU. There inductor works out random numbers one at a time; ATen's are quicker, and
    those that the plain model draws."""
    return all(value.device.type == "cpu" for value in examples if isinstance(value, Tensor))


def _order(value: Any) -> list[int] | None:
    """A tensor's axes, the one with the longest stride first."""
    if not isinstance(value, Tensor):
        return None
    return sorted(range(value.dim()), key=lambda i: -hint(value.stride()[i]))


def _laid_out(value: Tensor, strides: Sequence[int]) -> Tensor:
    """A fake tensor like `value` with these strides, which are those at the traced sizes."""
    axes = [i for i in range(value.dim()) if hint(value.shape[i]) != 1 and strides[i]]
    found: dict[int, int | torch.SymInt] = {}
    dense: int | torch.SymInt = 1
    for i in sorted(axes, key=lambda i: strides[i]):
        # Room between rows is left for fixed sizes alone.
        found[i] = dense if hint(dense) == strides[i] else strides[i]
        dense = found[i] * value.shape[i]
    return value.new_empty_strided(value.shape, [found.get(i, strides[i]) for i in range(value.dim())])


def _in_order(value: Tensor, order: Sequence[int]) -> Tensor:
    """A fake tensor like `value` whose memory has this order of axes."""
    permuted = value.new_empty([value.shape[i] for i in order])
    return permuted.permute([list(order).index(i) for i in range(len(order))])


def _fit(example: Any) -> Callable[[Tensor], Tensor] | None:
    """What gives an argument the memory layout that the graph was compiled for."""
    if not isinstance(example, Tensor):
        return None
    order = _order(example)
    if order == list(range(example.dim())):
        return lambda value: value if value.is_contiguous() else value.contiguous()
    return lambda value: value if _order(value) == order else _in_order(value, order).copy_(value)  # type: ignore[arg-type]
