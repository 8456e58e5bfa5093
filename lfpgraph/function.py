"""One autograd Function around a feedback program, so that `.backward()` and every training loop work untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import NonFiniteError
from .program import Program

__all__ = ["run_program"]


class _Feedback(torch.autograd.Function):
    """Inputs: program, buffers' values, then the placeholders' values; outputs: the graph's outputs.

    The gradient of a parameter is its negative feedback, `abs(w) * s_w` with the signal of the loss's gradient; the
    gradient of an input is its signal, so wrapped modules compose with any others.
    """

    @staticmethod
    def forward(ctx: Any, program: Program, check: bool, *values: Any) -> tuple[Any, ...]:
        results = program.call_forward(*values)
        outputs, saved = results[: program.n_outputs], results[program.n_outputs :]
        inputs = {id(value) for value in values}
        ctx.program = program
        ctx.check = check
        ctx.layout = _save(ctx, saved, values)
        ctx.shapes = [(outputs[i].shape, outputs[i].dtype, outputs[i].device) for i in program.signal_outputs]
        outputs = [out.clone() if id(out) in inputs and isinstance(out, Tensor) else out for out in outputs]
        signal = set(program.signal_outputs)
        ctx.mark_non_differentiable(*(o for i, o in enumerate(outputs) if i not in signal and isinstance(o, Tensor)))
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        program: Program = ctx.program
        inputs = _restore(ctx)
        for position, (shape, dtype, device) in zip(program.signal_outputs, ctx.shapes):
            g = gradients[position]
            inputs.append(torch.zeros(shape, dtype=dtype, device=device) if g is None else g)
        if ctx.check:
            _check_finite(gradients, "the signal given to the outputs")
        del gradients
        signals = program.call_feedback(inputs)
        result: list[Any] = [None] * len(program.plan.graph.placeholders)
        for position, s in zip(program.wanted, signals):
            result[position] = s
        _scale(program, ctx.weights, result)
        if ctx.check:
            _check_finite(result, "the feedback signal")
        return (None, None, *result)


def _check_finite(tensors: Sequence[Any], what: str) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors if isinstance(t, Tensor)):
        raise NonFiniteError(f"{what} holds NaN or infinity; lfpgraph.feedback(..., check=True) names the operation.")


def _scale(program: Program, weights: dict[int, Tensor], result: list[Any]) -> None:
    """Turn the signals of parameters into feedback, all of them in two calls."""
    places = [i for i in weights if result[i] is not None]
    if not program.plan.composite.weight_scaled or not places:
        return
    feedback = torch._foreach_abs([weights[i].detach() for i in places])
    torch._foreach_mul_(feedback, [result[i] for i in places])
    for i, value in zip(places, feedback):
        result[i] = value


def _save(ctx: Any, saved: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Keep what feedback needs; symbolic sizes as plain numbers."""
    program: Program = ctx.program
    placeholders = program.plan.graph.placeholders
    mutated = set(program.plan.graph.mutations)
    changing = {id(v) for v, p in zip(values, placeholders) if p.kind == "buffer" and p.target in mutated}
    tensors = [v.clone() if id(v) in changing else v for v in saved if isinstance(v, Tensor)]
    layout = [None if isinstance(value, Tensor) else value for value in saved]
    kinds = [isinstance(value, Tensor) for value in saved]
    ctx.save_for_backward(*tensors)
    ctx.weights = {i: values[i] for i in program.wanted if placeholders[i].kind == "parameter"}
    return list(zip(kinds, layout))


def _restore(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if is_tensor else value for is_tensor, value in ctx.layout]


def run_program(program: Program, values: Sequence[Any], check: bool = False) -> tuple[Any, ...]:
    """Run forward now; feedback runs on `.backward()`. Returns the graph's outputs.

    Raises:
        NonFiniteError: on backward, with `check`, where a signal is NaN or infinite.
    """
    return _Feedback.apply(program, check, *values)
