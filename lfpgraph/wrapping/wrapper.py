"""wrap and unwrap: feedback in place of the gradient, for an unmodified model and any training loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..errors import InputError, WrapError
from .forward import FeedbackForward
from .regional import RegionalForward
from .stand_in import StandIn

__all__ = ["is_wrapped", "unwrap", "wrap"]


def wrap(
    model: nn.Module,
    composite: str | Composite = "lfp-epsilon",
    *,
    compile: bool = False,
    memory: str | float = "fast",
    regional: bool | Sequence[str] = False,
    on_missing: str = "derive",
    fallback: str = "error",
    check: bool = False,
) -> nn.Module:
    """Let a model learn by feedback: after `loss.backward()` every `.grad` holds the negative LFP feedback.

    In place: the same object, class, state_dict and signature. Under `no_grad` the model runs as ever. The graph is
    traced at the first call and reused for other batch sizes.

    Args:
        model: any `nn.Module`.
        composite: a name (`lfpgraph.composite_names()`) or a `Composite`.
        compile: run the forward and the feedback graph through inductor, once for all sizes.
        memory: "fast" keeps whatever feedback needs; a number between 0 and 1 keeps about that share of its bytes and
            computes the rest again (the same numbers, more time); "min" is 0.3.
        regional: wrap the model's repeated blocks one by one, with the same program for all that are alike, and the modules
            beside them as parts of their own (see `wrapping.regional`), so that tracing takes the time of one block. True
            looks for the blocks; or give their names.
        on_missing: "derive" lets an operation without a rule use its true vjp (logged); "error" refuses it.
        fallback: "error", or "retrace" to trace real values anew at every step where forward branches on data.
        check: raise NonFiniteError on NaN or infinity in outputs, reward or feedback.

    Returns:
        The model itself.

    Raises:
        WrapError: already wrapped, not an nn.Module, no blocks found, or an unknown option. CompositeError: unknown composite.
        At the first call: TraceError, NoRuleError, InputError.
    """
    if not isinstance(model, nn.Module):
        raise WrapError(f"wrap takes an nn.Module, not {type(model).__name__}")
    if is_wrapped(model):
        raise WrapError(f"{type(model).__name__} is wrapped already; call lfpgraph.unwrap(model) first.")
    options = Options(on_missing, fallback, compile, memory, check, part=bool(regional), error=WrapError)
    chosen = get_composite(composite)
    if not any(True for _ in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameters, so there is nothing to train.")
    if not regional:
        FeedbackForward(model, chosen, options).place()
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
    return isinstance(model.__dict__.get("forward"), StandIn)
