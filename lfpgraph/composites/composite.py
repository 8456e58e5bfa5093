"""Composites, as the field calls them (zennit, LXT): which rule and which epsilon each part of a model gets."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import CompositeError, near
from ..graph.depths import Depths, Place
from ..numerics import is_zero, scale_by_floored_size, scale_by_size
from ..registry import ATTENTION, CONTRACTION, PRODUCT, QUOTIENT, REDUCTION, SPLIT, Family, Handler, Rule
from ..rules.lrp.layers import LayerRule
from ..rules.views import vjp
from .options import check_ruleset, floor_of, unit_of

if TYPE_CHECKING:
    from ..graph.graph import OpGraph
    from ..graph.structure import Structure

__all__ = ["Composite", "Ruleset", "composite_names", "get_composite", "register_composite"]

_PRODUCTS = (CONTRACTION, PRODUCT, QUOTIENT, ATTENTION)
_SUMS = (SPLIT, REDUCTION)
_WHOLE = Rule(vjp, is_vjp=True)


@dataclass(frozen=True)
class Ruleset:
    """How the operations of one part of a model are treated.

    Attributes:
        rules: True applies the registry's rules; False the true gradient everywhere.
        epsilon: the stabilizer of the epsilon rule (LFP eq. 8), in units of the activation; 0 is the zero rule.
        handlers: rules that replace the registry's, for single operations or, by name, for families of them; those of
            "normalisation" and "activation" also serve such a function written out. A function, or a `Rule` where the
            engine must know more of it.
        scale: "weight": a parameter's feedback is `abs(w) * s_w` (LFP eq. 6); "signal": the plain signal s_w.
        vectors: "weight" treats parameters of fewer than two dimensions (biases, scales of norms) and those of any that are
            only added to something (position embeddings) as `scale` says; "signal": plain, so that a bias of zero can move.
        factors: the same choice for the two matrices of a layer of low rank (LoRA's A and B; `graph.factors`).
        floor: the feedback is `max(abs(w), floor) * s_w`, so that a weight of zero can move. A number, in units of the
            parameter; or "rms", the root of the parameter's mean square, also times a number: "0.3 rms".
        unit: "start" divides `max(abs(w), floor) * s_w` of a matrix by the root mean square of a weight as torch's layers start
            it, `1 / sqrt(3 n)` with n the number of entries for each of its rows, or by its own where that is less. So the
            feedback is about as large as the signal. A number before it, as in "1/3 start", multiplies that size of a start.
            "parameter" leaves the feedback as it is.
        wake: a wholly zero factor of activations (LoRA's `B` at its start, VeRA's vector), which would never move and let
            nothing behind it move, gets the plain signal for as long as it is wholly zero; not so a bias, which is added.
        products: of several activations. "shared" gives each factor an equal share of the vector-Jacobian product, and a
            divisor none, so that reward is kept (AttnLRP prop. 3.2, 3.3); "whole" gives each all of it, divisors too.
        sums: of activations, `x + y` or over a dimension. "epsilon" divides by the stabilized total, which passes nothing on
            where that is exactly zero; "whole" hands each term the signal of the total, which is the vector-Jacobian product.
    """

    rules: bool = True
    epsilon: float = 1e-6
    handlers: Mapping[OpOverload | str, Handler | Rule] = field(default_factory=dict)
    scale: str = "weight"
    floor: float | str = 0.0
    wake: bool = True
    vectors: str = "weight"
    factors: str = "weight"
    products: str = "shared"
    unit: str = "parameter"
    sums: str = "epsilon"

    def __post_init__(self) -> None:
        check_ruleset(vars(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "handlers": _names_of(self.handlers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "handlers": _handlers_of(state["handlers"])})

    def rule(self, op: Any, family: Family | None) -> Rule | None:
        """The rule that this ruleset has in place of the registry's: for the operation itself, or for its family."""
        found = self.handlers.get(op) or (self.handlers.get(family.name) if family is not None else None)
        if found is None and (
            self.products == "whole" and family in _PRODUCTS or self.sums == "whole" and family in _SUMS
        ):
            return _WHOLE
        known = found is None or isinstance(found, Rule)
        return found if known else Rule(found, own_stabilizer=isinstance(found, LayerRule))  # type: ignore[return-value,arg-type]

    def takes_signal(self, w: Tensor) -> bool:
        """Whether the feedback of the parameter w is its plain signal."""
        return self.scale == "signal" or (self.vectors == "signal" and w.dim() < 2)

    def leaves_zero(self, w: Tensor) -> bool:
        """Whether a parameter w that is wholly zero gets feedback of zero, unless it wakes."""
        return not self.takes_signal(w) and not self.size_of(w)[2]

    def wakes(self, w: Tensor) -> bool:
        """Whether w is wholly zero, or its memory is away until the feedback (FSDP), and it is to get a signal all the same."""
        may = self.wake or floor_of(self.floor)[0] > 0 or self.takes_signal(w)
        here = w.layout is torch.strided and w.device.type != "meta" and not isinstance(w, FakeTensor)
        if not may or not here or w.numel() == 0:
            return False
        return w.untyped_storage().nbytes() == 0 or is_zero(w)

    def feedback(self, w: Tensor, s: Tensor, asleep: bool, over: bool = False) -> Tensor:
        """Feedback of a parameter w with the signal s, both of w's shape (LFP eq. 6).

        Only a w that is `asleep`, so `wakes(w)` when the plan was made, is looked at for being wholly zero. With `over`, the
        result may be written over s.
        """
        if self.takes_signal(w):
            return s
        if w.layout is not torch.strided:  # what the same numbers would get in a dense one
            found = self.feedback(w.to_dense(), s.to_dense(), asleep)
            return found if s.layout is torch.strided else found.sparse_mask(w.coalesce() if w.is_sparse else w)
        share, unit, floor = self.size_of(w)
        if floor:
            return scale_by_floored_size(s, w.abs().clamp_min(floor), 0.0, unit)
        over = over and not asleep
        found = scale_by_floored_size(s, w, share, unit, over) if (share, unit) != (0, 1) else scale_by_size(s, w, over)
        return torch.where(w.any(), found, s) if asleep else found

    def size_of(self, w: Tensor) -> tuple[float, float, float]:
        """Share, unit, floor: `max(abs(w), share * rms(w), floor) * max(unit, 1 / rms(w)) * s` (a unit of 1 is none)."""
        floor, relative = floor_of(self.floor)
        start = unit_of(self.unit) if w.dim() > 1 and w.numel() else None
        unit = 1.0 if start is None else math.sqrt(3 * math.prod(w.shape[1:])) / start
        return (floor if w.numel() else 0.0, unit, 0.0) if relative else (0.0, unit, floor)


@dataclass(frozen=True)
class Composite:
    """A ruleset for the whole model, overridden per module path.

    Attributes:
        name: as users select it.
        default: the ruleset of every operation that no override matches.
        overrides: pairs of a place and a ruleset; the last match wins. A place is a module-path pattern
            (`encoder.layer.0.*`, shell style) or a range of depths.
        merge_norms: `attribute` merges batch norms into the layer before them.
        prefix: where in the model the traced module is, if it is a part; with a dot behind it.
        structure: reads the graph and says which runs are one unit, which rules single operations get, and where no
            reward passes (see `graph.structure`); None for the usual regions.
        online: run the model again inside feedback, step by step of an unrolled loop, and keep nothing (see `online`).
        compares: its rules compare the run with one at a reference point, `attribute`'s baseline (see `rules.lrp.rescale`).
    """

    name: str
    default: Ruleset = Ruleset()
    overrides: tuple[tuple[str | Depths, Ruleset], ...] = ()
    merge_norms: bool = False
    prefix: str = ""
    structure: Callable[[OpGraph], Structure] | None = None
    online: bool = False
    compares: bool = False

    @property
    def rulesets(self) -> list[Ruleset]:
        """The default ruleset, and those of the overrides in order."""
        return [self.default, *(ruleset for _, ruleset in self.overrides)]

    @property
    def by_place(self) -> bool:
        """Whether any override asks for a depth."""
        return any(isinstance(where, Depths) for where, _ in self.overrides)

    def ruleset(self, path: str, place: Place | None = None) -> Ruleset:
        """The ruleset for the module at a dotted path, at its place among the layers."""
        path = f"{self.prefix}{path}".rstrip(".")
        for where, ruleset in reversed(self.overrides):
            if where.matches(place) if isinstance(where, Depths) else fnmatch.fnmatchcase(path, where):
                return ruleset
        return self.default

    def parameter_ruleset(self, name: str) -> Ruleset:
        """The ruleset of a parameter by its dotted name: the last override that matches the name or its module's path."""
        name = self.prefix + name
        module = name.rpartition(".")[0]
        for pattern, ruleset in reversed(self.overrides):
            if isinstance(pattern, Depths):
                continue
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(module, pattern):
                return ruleset
        return self.default

    def at_depth(
        self, start: int | None, stop: int | None = None, composite: str | Composite | None = None, **options: Any
    ) -> Composite:
        """This composite with other rules for the layers from depth `start` up to `stop`, which is left out.

        A layer is an operation of an activation and weights (linear, convolution); its depth is the number of layers on
        the longest way from the input to it. What is no layer counts with the layer before it. `at_depth(0, 1, ...)` is
        the first layer, `at_depth(-3, None, ...)` the last three.

        Args:
            composite: take the default ruleset of this composite; otherwise this composite's own.
            options: fields of `Ruleset` to change.
        """
        base = self.default if composite is None else get_composite(composite).default
        return replace(self, overrides=(*self.overrides, (Depths(start, stop), _changed(base, options))))

    def override(self, pattern: str, composite: str | Composite | None = None, **options: Any) -> Composite:
        """This composite with other rules where the module path matches `pattern` (shell style, `*` crosses dots).

        The options of parameters (`scale`, `floor`, `wake`) apply where the pattern matches the parameter's own name, or
        its module's.

        Args:
            pattern: e.g. `"classifier"`, `"encoder.layer.0.*"`, for parameters also `"*.bias"`.
            composite: take the ruleset of this composite; otherwise this composite's own default.
            options: fields of `Ruleset` to change, e.g. `epsilon=1e-3`.
        """
        if not isinstance(pattern, str):
            raise CompositeError(f'pattern={pattern!r} must be text, such as "encoder.layer.0.*"')
        base = self.default if composite is None else get_composite(composite).default
        return replace(self, overrides=(*self.overrides, (pattern, _changed(base, options))))

    def with_options(self, **options: Any) -> Composite:
        """This composite with fields of its default `Ruleset` changed, e.g. `epsilon=0.1`.

        Raises:
            CompositeError: a ruleset has no such field.
        """
        return replace(self, default=_changed(self.default, options))

    def within(self, name: str) -> Composite:
        """This composite for the part of the model at `name`, whose graph knows nothing of the rest."""
        return replace(self, prefix=f"{self.prefix}{name}.")


def _changed(ruleset: Ruleset, options: Mapping[str, Any]) -> Ruleset:
    try:
        return replace(ruleset, **options)
    except TypeError:
        known = ", ".join(Ruleset.__dataclass_fields__)
        raise CompositeError(f"unknown option in {sorted(options)}; a ruleset has: {known}") from None


_COMPOSITES: dict[str, Composite] = {}


def _names_of(handlers: Mapping[OpOverload | str, Handler | Rule]) -> tuple[str, int] | list[tuple[bool, str, Any]]:
    """What a pickle or copy keeps: whose handlers these are, or else each handler with its operation's name."""
    for name, composite in _COMPOSITES.items():
        for place, ruleset in enumerate(composite.rulesets):
            if ruleset.handlers is handlers:
                return name, place
    return [(isinstance(op, OpOverload), str(op), handler) for op, handler in handlers.items()]


def _handlers_of(names: tuple[str, int] | list[tuple[bool, str, Any]]) -> Mapping[OpOverload | str, Handler | Rule]:
    if isinstance(names, tuple):
        return get_composite(names[0]).rulesets[names[1]].handlers
    return {_operation(name) if is_op else name: handler for is_op, name, handler in names}


def _operation(name: str) -> OpOverload:
    found: Any = functools.reduce(getattr, name.split("."), torch.ops)
    assert isinstance(found, OpOverload)
    return found


def register_composite(composite: Composite) -> Composite:
    """Make a composite selectable by its name.

    Raises:
        CompositeError: the name is taken.
    """
    if composite.name in _COMPOSITES:
        raise CompositeError(f"a composite named {composite.name!r} is registered already")
    _COMPOSITES[composite.name] = composite
    return composite


def composite_names() -> list[str]:
    """Names that `composite=` accepts."""
    return sorted(_COMPOSITES)


def get_composite(composite: str | Composite) -> Composite:
    """The composite of a name, or the composite itself.

    Raises:
        CompositeError: unknown name; the message lists the known ones.
    """
    if isinstance(composite, Composite):
        return composite
    if not isinstance(composite, str) or composite not in _COMPOSITES:
        raise CompositeError(
            f"unknown composite {repr(composite)[:200]}{near(composite, _COMPOSITES)}; known: {', '.join(composite_names())}"
        )
    return _COMPOSITES[composite]
