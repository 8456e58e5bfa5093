"""One autograd Function around a feedback program, so that `.backward()` and every training loop work untouched."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.program import Program
from ..errors import NonFiniteError, WrapError
from ..live.parameters import refuse_batched

__all__ = ["run_program"]

Feed = Callable[[Tensor, Tensor], None]


class _Feedback(torch.autograd.Function):
    """From the values of a program's placeholders to the outputs of its graph.

    The signals that come in are the gradients of a loss, so they are negative; what a parameter gets as its gradient is its
    negative feedback, `abs(w) * s_w`. What an input gets is its signal, so wrapped modules compose with any others.
    """

    gives_feedback = True  # to parameters; asked for by a live run that it is a part of

    @staticmethod
    def forward(
        ctx: Any, program: Program, check: bool, part: bool, feed: Feed | None, *values: Any
    ) -> tuple[Any, ...]:
        results = program.call_forward(*values)
        outputs, saved = results[: program.n_outputs], results[program.n_outputs :]
        if part:  # other code of the model may write into the outputs
            made = _memory(outputs) - _memory(values)
            saved = [v.clone() if _memory([v]) & made else v for v in saved]
        inputs = {id(value) for value in values}
        ctx.program = program
        ctx.check = check
        ctx.feed = feed
        ctx.parameters = [] if feed is None else [(i, values[i]) for i in program.places["parameter"]]
        _save(ctx, saved, values, outputs)
        ctx.shapes = [(outputs[i].shape, outputs[i].dtype, outputs[i].device) for i in program.signal_outputs]
        outputs = [out.clone() if id(out) in inputs and isinstance(out, Tensor) else out for out in outputs]
        if len(program.signal_outputs) < len(outputs):
            signal = set(program.signal_outputs)
            with_signal = {id(outputs[i]) for i in signal}  # `loss, loss.detach()`: one tensor to the program
            outputs = [o.detach() if i not in signal and id(o) in with_signal else o for i, o in enumerate(outputs)]
            ctx.mark_non_differentiable(
                *(o for i, o in enumerate(outputs) if i not in signal and isinstance(o, Tensor))
            )
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise WrapError(
                "a second derivative is asked for (create_graph=True), which a traced program does not have. "
                'wrap(model, engine="live") gives it.'
            )
        refuse_batched()
        program: Program = ctx.program
        inputs = _restore(ctx)
        for position, (shape, dtype, device) in zip(program.signal_outputs, ctx.shapes):
            g = gradients[position]
            inputs.append(torch.zeros(shape, dtype=dtype, device=device) if g is None else g)
        if ctx.check:
            _check_finite(gradients, "the signal given to the outputs")
        given = {position for position in program.signal_outputs if gradients[position] is not None}
        del gradients
        signals = program.call_feedback(inputs)
        result: list[Any] = [None] * len(program.plan.graph.placeholders)
        for position, s, outputs in zip(program.wanted, signals, program.reached_from):
            if outputs & given:  # none for what the loss does not depend on, as autograd leaves `.grad` alone there
                result[position] = s
        if ctx.check:
            _check_finite(result, "the feedback signal")
        skipped = _skipped(ctx) if ctx.parameters else set()
        for place, parameter in ctx.parameters:
            s = result[place]
            if s is not None and id(parameter) not in skipped:
                ctx.feed(parameter, s)
        return (None, None, None, None, *result)


def _skipped(ctx: Any) -> set[int]:
    """Parameters that this backward pass does not go on to, since `inputs=` or `autograd.grad` asks for others."""
    found = set()
    for node, _ in ctx.next_functions:
        try:
            if hasattr(node, "variable") and not torch._C._will_engine_execute_node(node):
                found.add(id(node.variable))
        except RuntimeError:  # torch has no answer for a leaf whose gradient `autograd.grad` is asked for
            continue
    return found


def _check_finite(tensors: Sequence[Any], what: str) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in tensors if isinstance(t, Tensor)):
        raise NonFiniteError(f"{what} holds NaN or infinity; lfpgraph.feedback(..., check=True) names the operation.")


def _save(ctx: Any, saved: Sequence[Any], values: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Keep what feedback needs.

    Inputs, outputs and views of them are saved through autograd, which notices when they are changed in place. The other
    tensors are kept on the context, so that backward can free each at its last use; but where saved-tensor hooks
    (offloading, say) are in force, all go through autograd.
    """
    program: Program = ctx.program
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    watched: Sequence[Any] = program.watched
    if hooked or None in watched:
        known = {id(v) for v in (*values, *outputs)}
        shared = _memory([*outputs, *(values[i] for i in program.places["input"])])
        watched = [
            isinstance(v, Tensor) and (hooked or id(v) in known or (look is None and bool(_memory([v]) & shared)))
            for v, look in zip(saved, watched)
        ]
    kept = itertools.compress(saved, watched)
    if program.changing:
        changing = {id(values[i]) for i in program.changing}
        kept = (v.clone() if id(v) in changing else v for v in kept)  # type: ignore[assignment]
    ctx.save_for_backward(*kept)
    ctx.kept = [None if w else v for v, w in zip(saved, watched)]
    ctx.watched = watched


def _memory(values: Sequence[Any]) -> set[int]:
    """Which memory the tensors among the values lie in: a view shares it with what it is a view of. Sparse ones have none."""
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor) and v.layout is torch.strided}


def _restore(ctx: Any) -> list[Any]:
    """The saved values in a new list; the context keeps them no longer, unless the graph is to be used again."""
    if ctx.kept is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time, but what it saved has been freed; pass "
            "retain_graph=True to the first backward call."
        )
    try:
        tensors = iter(ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise WrapError(
            "an input or output of the model was written into in place after the call, and the traced program's feedback "
            'needs it. wrap(model, engine="live") runs the model itself; or write into a copy.'
        ) from error
    values = [next(tensors) if w else v for v, w in zip(ctx.kept, ctx.watched)]
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.kept = None
    return values


def run_program(
    program: Program, values: Sequence[Any], check: bool = False, part: bool = False, feed: Feed | None = None
) -> tuple[Any, ...]:
    """Run forward now; feedback runs on `.backward()`. Returns the graph's outputs.

    Args:
        values: of the placeholders.
        check: refuse NaN and infinity.
        part: the outputs go to other code of the model, which may change them in place.
        feed: is told of each parameter and the feedback that is on its way to it.

    Raises:
        NonFiniteError: on backward, with `check`, where a signal is NaN or infinite.
    """
    return _Feedback.apply(program, check, part, feed, *values)
