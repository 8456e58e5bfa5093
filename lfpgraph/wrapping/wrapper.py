"""wrap and unwrap: feedback in place of the gradient, for an unmodified model and any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..errors import InputError, WrapError, check_choice
from ..tracing.tracer import FALLBACKS
from .calls import Wrapping, wrapping_of
from .choice import ENGINES, Explanation
from .forward import FeedbackForward
from .regional import RegionalForward
from .stand_in import StandIn

__all__ = ["explain_wrap", "is_wrapped", "unwrap", "wrap"]


def wrap(
    model: nn.Module,
    composite: str | Composite = "lfp-epsilon",
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
            model at the first call and runs the trace in its place; "auto" takes the static engine where it is provably
            the model, and the live one elsewhere. `lfpgraph.explain_wrap(model)` says which one runs, and why.
        compile: run the forward and the feedback graph through inductor, once for all sizes.
        memory: "fast" keeps whatever feedback needs; a number between 0 and 1 keeps about that share of its bytes and
            computes the rest again (the same numbers, more time); "min" is 0.3.
        regional: wrap the model's repeated blocks one by one, with the same program for all that are alike, and the modules
            beside them as parts of their own (see `wrapping.regional`), so that tracing takes the time of one block. True
            looks for the blocks; or give their names.
        on_missing: "derive" lets an operation without a rule use its true vjp (logged); "error" refuses it.
        fallback: no longer needed; "retrace" is taken as engine="live", with a warning.
        check: raise NonFiniteError on NaN or infinity in outputs, reward or feedback.

    Returns:
        The model itself.

    Raises:
        WrapError: already wrapped, not an nn.Module, no blocks found, or an unknown option. CompositeError: unknown composite.
        At the first call: NoRuleError, InputError; TraceError with engine="static".
    """
    if not isinstance(model, nn.Module):
        raise WrapError(f"wrap takes an nn.Module, not {type(model).__name__}")
    if is_wrapped(model):
        raise WrapError(f"{type(model).__name__} is wrapped already; call lfpgraph.unwrap(model) first.")
    check_choice("engine", engine, ENGINES, WrapError)
    if fallback is not None:
        check_choice("fallback", fallback, FALLBACKS, WrapError)
        engine = "live" if fallback == "retrace" and engine == "auto" else engine
        warnings.warn(
            f"fallback={fallback!r} is no longer needed: engine={engine!r} takes its place", FutureWarning, stacklevel=2
        )
    options = Options(on_missing, "error", compile, memory, check, part=bool(regional), error=WrapError)
    chosen = get_composite(composite)
    if not any(True for _ in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameters, so there is nothing to train.")
    if not regional and engine == "static":
        FeedbackForward(model, chosen, options).place()
        return model
    if not regional:
        Wrapping(model, chosen, options, engine).place()
        return model

    for name, part in model.named_modules():
        if is_wrapped(part):
            raise WrapError(f"{name} is wrapped already; call lfpgraph.unwrap on it first.")

    def wrap_part(name: str, part: nn.Module, leader: str | None) -> None:
        own = chosen.within(name)
        shared = None
        if leader is not None and _alike(part, own, chosen.within(leader)):
            shared = model.get_submodule(leader).__dict__["forward"].programs
        FeedbackForward(part, own, options, shared).place()

    blocks = None if regional is True else list(regional)  # type: ignore[arg-type]
    RegionalForward(model, blocks, wrap_part, chosen).place()
    return model


def _alike(part: nn.Module, own: Composite, other: Composite) -> bool:
    """Whether two composites have the same rules for all modules and parameters of a part."""
    if any(own.parameter_ruleset(n) != other.parameter_ruleset(n) for n, _ in part.named_parameters()):
        return False
    return all(own.ruleset(path) == other.ruleset(path) for path, _ in part.named_modules(remove_duplicate=False))


def unwrap(model: nn.Module) -> nn.Module:
    """Undo `wrap`, in place.

    Raises:
        WrapError: the model is not wrapped.
    """
    wrapping = wrapping_of(model)
    if wrapping is not None:
        wrapping.remove()
        return model
    forward = model.__dict__.get("forward")
    if not isinstance(forward, StandIn):
        raise WrapError(f"{type(model).__name__} is not wrapped.")
    if isinstance(forward, RegionalForward):
        forward.release()
        for name in forward.parts:
            unwrap(model.get_submodule(name))
    forward.restore(model)
    return model


def is_wrapped(model: nn.Module) -> bool:
    """Whether `wrap` is in effect on the model."""
    return wrapping_of(model) is not None or isinstance(model.__dict__.get("forward"), StandIn)


def explain_wrap(model: nn.Module) -> Explanation:
    """Which engine runs a wrapped model, since when and why.

    Raises:
        WrapError: the model is not wrapped.
    """
    wrapping = wrapping_of(model)
    if wrapping is not None:
        return wrapping.explain()
    forward = model.__dict__.get("forward")
    if not isinstance(forward, StandIn):
        raise WrapError(f"{type(model).__name__} is not wrapped.")
    why = (
        "its parts are wrapped one by one" if isinstance(forward, RegionalForward) else "engine='static' was asked for"
    )
    traces = forward.traces if isinstance(forward, FeedbackForward | RegionalForward) else 0
    return Explanation("static", why, 0, forward.calls, 0, traces)
