"""One autograd Function around a feedback program, so that `.backward()` and every training loop work untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..engine.program import Program
from ..errors import NonFiniteError

__all__ = ["run_program"]


class _Feedback(torch.autograd.Function):
    """Inputs: program, buffers' values, then the placeholders' values; outputs: the graph's outputs.

    The gradient of a parameter is its negative feedback, `abs(w) * s_w` with the signal of the loss's gradient; the
    gradient of an input is its signal, so wrapped modules compose with any others.
    """

    @staticmethod
    def forward(ctx: Any, program: Program, check: bool, part: bool, *values: Any) -> tuple[Any, ...]:
        results = program.call_forward(*values)
        outputs, saved = results[: program.n_outputs], results[program.n_outputs :]
        if part:  # the model's own code may write into them
            made = {o.untyped_storage()._cdata for o in outputs if isinstance(o, Tensor)}
            made -= {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}
            saved = [v.clone() if isinstance(v, Tensor) and v.untyped_storage()._cdata in made else v for v in saved]
        inputs = {id(value) for value in values}
        ctx.program = program
        ctx.check = check
        _save(ctx, saved, values, outputs)
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
        if ctx.check:
            _check_finite(result, "the feedback signal")
        return (None, None, None, *result)


def _check_finite(tensors: Sequence[Any], what: str) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors if isinstance(t, Tensor)):
        raise NonFiniteError(f"{what} holds NaN or infinity; lfpgraph.feedback(..., check=True) names the operation.")


def _save(ctx: Any, saved: Sequence[Any], values: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Keep what feedback needs.

    Inputs and outputs go through autograd, which watches them for in-place changes. What only this pass knows is kept
    on the context, so that backward can let each tensor go at its last use; with saved-tensor hooks (offloading) in
    force, it goes through autograd too.
    """
    program: Program = ctx.program
    placeholders = program.plan.graph.placeholders
    mutated = set(program.plan.graph.mutations)
    changing = {id(v) for v, p in zip(values, placeholders) if p.kind == "buffer" and p.target in mutated}
    known = {id(v) for v in (*values, *outputs)}
    given = [v for v, p in zip(values, placeholders) if p.kind == "input"]
    shared = {v.untyped_storage()._cdata for v in (*given, *outputs) if isinstance(v, Tensor)}  # views of these as well
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    watched = [
        isinstance(v, Tensor) and (hooked or id(v) in known or v.untyped_storage()._cdata in shared) for v in saved
    ]
    ctx.save_for_backward(*(v.clone() if id(v) in changing else v for v, w in zip(saved, watched) if w))
    ctx.kept = [None if w else v for v, w in zip(saved, watched)]
    ctx.watched = watched


def _restore(ctx: Any) -> list[Any]:
    """The saved values as a list of its own, let go by the context unless the graph is to be kept."""
    if ctx.kept is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time, but what it saved has been freed; pass "
            "retain_graph=True to the first backward call."
        )
    tensors = iter(ctx.saved_tensors)
    values = [next(tensors) if w else v for v, w in zip(ctx.kept, ctx.watched)]
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.kept = None
    return values


def run_program(program: Program, values: Sequence[Any], check: bool = False, part: bool = False) -> tuple[Any, ...]:
    """Run forward now; feedback runs on `.backward()`. Returns the graph's outputs.

    Args:
        part: the outputs go to other code of the model, which may change them in place.

    Raises:
        NonFiniteError: on backward, with `check`, where a signal is NaN or infinite.
    """
    return _Feedback.apply(program, check, part, *values)
