"""wrap and unwrap: feedback in place of the gradient, for an unmodified model and any training loop."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from torch import nn

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..errors import CompositeError, InputError, WrapError, check_choice
from ..live.engine import changes_gradients
from ..live.interception import compile_calls_anew
from ..tracing.tracer import FALLBACKS
from .calls import Wrapping, wrapping_of
from .choice import ENGINES, Explanation
from .readiness import make_ready
from .regional import WrappingInParts, leaders_of
from .stand_in import stand_in_of

__all__ = ["explain_wrap", "is_wrapped", "unwrap", "wrap"]

log = logging.getLogger("lfpgraph")


def wrap(
    model: nn.Module,
    composite: str | Composite = "lfp",
    *,
    compile: bool = False,
    memory: str | float = "fast",
    regional: bool | Sequence[str] = False,
    on_missing: str = "derive",
    engine: str = "auto",
    fallback: str | None = None,
    check: bool = False,
) -> nn.Module:
    """Let a model learn by feedback: after `loss.backward()` every `.grad` holds the negative LFP feedback.

    In place: the same object, class, state_dict and signature. Under `no_grad` the model runs as ever. The wrap follows the
    model's call: what replaces `model.forward` later is part of the model.

    Args:
        model: any `nn.Module`.
        composite: a name (`lfpgraph.composite_names()`) or a `Composite`.
        engine: "live" runs the model's own forward at every call and amends what autograd hands back; "static" traces the
            model at the first call and runs the trace in its place; "auto" runs the first hundred calls live, and then takes
            the static engine where it is provably the model. `lfpgraph.explain_wrap(model)` says which one runs, and why.
        compile: run the forward and the feedback graph through inductor, once for all sizes.
        memory: "fast" keeps whatever feedback needs; a number between 0 and 1 keeps about that share of its bytes and
            computes the rest again (the same numbers, more time); "min" goes down to 0.3 where that takes no more than 15 %
            of the forward pass's multiplications once more, and in any case to 0.6.
        regional: wrap the model's repeated blocks one by one, with the same program for all that are alike, and the modules
            beside them as parts of their own (see `wrapping.regional`), so that tracing takes the time of one block. True
            looks for the blocks; or give their names.
        on_missing: "derive" lets an operation without a rule use its true vjp (logged); "error" refuses it.
        fallback: no longer needed; "retrace" is taken as engine="live", with a warning.
        check: raise NonFiniteError on NaN or infinity in outputs, reward or feedback.

    Returns:
        The model itself.

    Raises:
        WrapError: already wrapped or compiled, no nn.Module, no blocks found, or an unknown option. CompositeError: unknown name.
        At the first call: NoRuleError, InputError; TraceError with engine="static".
    """
    if not isinstance(model, nn.Module):
        raise WrapError(f"wrap takes an nn.Module, not {type(model).__name__}")
    if is_wrapped(model):
        raise WrapError(f"{type(model).__name__} is wrapped already; call lfpgraph.unwrap(model) first.")
    outer = stand_in_of(model)
    if outer is not None:
        whole = type(outer.wrapping.model).__name__
        raise WrapError(
            f"{type(model).__name__} is {outer.path} of a wrapped {whole}, which gives it feedback already."
        )
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # not imported for this: it takes seconds
    for name, module in model.named_modules() if dynamo is not None else ():
        if isinstance(module, dynamo.OptimizedModule):  # type: ignore[union-attr]
            log.info("%s is compiled; while it gives feedback it runs as it was written", name or "the model")
    if compile_calls_anew():
        log.info("what torch.compile has made so far is compiled anew: it would run a wrapped model as a plain one")
    check_choice("engine", engine, ENGINES, WrapError)
    if fallback is not None:
        check_choice("fallback", fallback, FALLBACKS, WrapError)
        engine = "live" if fallback == "retrace" and engine == "auto" else engine
        warnings.warn(
            f"fallback={fallback!r} is no longer needed: engine={engine!r} takes its place", FutureWarning, stacklevel=2
        )
    options = Options(on_missing, "error", compile, memory, check, part=bool(regional), error=WrapError)
    chosen = get_composite(composite)
    if chosen.compares:
        raise CompositeError(f"composite {chosen.name!r} explains (lfpgraph.attribute) and does not train")
    if not any(True for _ in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameters, so there is nothing to train.")
    if engine != "static" and changes_gradients(chosen):
        make_ready()
    if not regional:
        Wrapping(model, chosen, options, engine).place()
        return model
    for name, part in model.named_modules():
        if stand_in_of(part) is not None:
            raise WrapError(f"{name} is wrapped already; call lfpgraph.unwrap on it first.")
    leaders = leaders_of(model, None if regional is True else list(regional))  # type: ignore[arg-type]
    WrappingInParts(model, chosen, options, leaders).place()
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Undo `wrap`, in place.

    Raises:
        WrapError: the model is not wrapped.
    """
    _wrapping(model).remove()
    return model


def is_wrapped(model: nn.Module) -> bool:
    """Whether `wrap` is in effect on the model."""
    return wrapping_of(model) is not None


def explain_wrap(model: nn.Module) -> Explanation:
    """Which engine runs a wrapped model, since when and why.

    Raises:
        WrapError: the model is not wrapped.
    """
    return _wrapping(model).explain()


def _wrapping(model: nn.Module) -> Wrapping:
    found = wrapping_of(model)
    if found is None:
        raise WrapError(f"{type(model).__name__} is not wrapped.")
    return found
