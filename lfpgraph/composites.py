"""Composites: which rule and which epsilon each part of a model gets.

"Composite" is the field's word (zennit, LXT) for a mapping from operations to rules.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from .errors import CompositeError
from .places import Place

__all__ = ["Composite", "Depths", "Ruleset", "composite_names", "get_composite", "register_composite"]


@dataclass(frozen=True)
class Ruleset:
    """How the operations of one part of a model are treated.

    Attributes:
        rules: True applies the registry's rules; False the true gradient everywhere.
        epsilon: the stabilizer of the epsilon rule (LFP eq. 8), in units of the activation; 0 is the zero rule.
        handlers: rules that replace the registry's, for single operations or, by name, for families of them; those of
            "normalisation" and "activation" also serve such a function written out.
    """

    rules: bool = True
    epsilon: float = 1e-6
    handlers: Mapping[OpOverload | str, Callable[..., Any]] = field(default_factory=dict)

    def handler(self, op: Any, family: str) -> Callable[..., Any] | None:
        """The rule that this ruleset has for an operation of its own, or for its family."""
        return self.handlers.get(op) or self.handlers.get(family)


@dataclass(frozen=True)
class Depths:
    """A range of depths, as places of a model.

    Attributes:
        start, stop: layers counted from the input as in a slice, from 0 and without `stop`; negative ones count from the
            output, None leaves that end open.
    """

    start: int | None
    stop: int | None

    def matches(self, place: Place | None) -> bool:
        """Whether a node's place lies in the range."""
        if place is None:
            return False
        return place.depth in range(*slice(self.start, self.stop).indices(place.count))


@dataclass(frozen=True)
class Composite:
    """A ruleset for the whole model, overridden per module path.

    Attributes:
        name: as users select it.
        default: the ruleset of every operation that no override matches.
        overrides: pairs of a place and a ruleset; the last match wins. A place is a module-path pattern
            (`encoder.layer.0.*`, shell style) or a range of depths.
        weight_scaled: feedback is `abs(w) * s_w` (LFP eq. 6); False gives the plain signal s_w.
        merge_norms: `attribute` merges batch norms into the layer before them.
    """

    name: str
    default: Ruleset = Ruleset()
    overrides: tuple[tuple[str | Depths, Ruleset], ...] = ()
    weight_scaled: bool = True
    merge_norms: bool = False

    @property
    def by_place(self) -> bool:
        """Whether any override asks for a depth."""
        return any(isinstance(where, Depths) for where, _ in self.overrides)

    def ruleset(self, path: str, place: Place | None = None) -> Ruleset:
        """The ruleset for the module at a dotted path, at its place among the layers."""
        for where, ruleset in reversed(self.overrides):
            if where.matches(place) if isinstance(where, Depths) else fnmatch.fnmatchcase(path, where):
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

        Args:
            pattern: e.g. `"classifier"`, `"encoder.layer.0.*"`.
            composite: take the ruleset of this composite; otherwise this composite's own default.
            options: fields of `Ruleset` to change, e.g. `epsilon=1e-3`.
        """
        base = self.default if composite is None else get_composite(composite).default
        return replace(self, overrides=(*self.overrides, (pattern, _changed(base, options))))

    def with_options(self, **options: Any) -> Composite:
        """This composite with fields of its default `Ruleset` changed, e.g. `epsilon=0.1`.

        Raises:
            CompositeError: a ruleset has no such field.
        """
        return replace(self, default=_changed(self.default, options))

    def feedback(self, w: Tensor, s: Tensor) -> Tensor:
        """Feedback of a parameter w with the signal s, both of w's shape (LFP eq. 6)."""
        return w.abs() * s if self.weight_scaled else s


def _changed(ruleset: Ruleset, options: Mapping[str, Any]) -> Ruleset:
    try:
        return replace(ruleset, **options)
    except TypeError:
        known = ", ".join(Ruleset.__dataclass_fields__)
        raise CompositeError(f"unknown option in {sorted(options)}; a ruleset has: {known}") from None


_COMPOSITES: dict[str, Composite] = {}


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
    if composite not in _COMPOSITES:
        raise CompositeError(f"unknown composite {composite!r}; known: {', '.join(composite_names())}")
    return _COMPOSITES[composite]


register_composite(Composite("gradient", Ruleset(rules=False, epsilon=0.0), weight_scaled=False))
register_composite(Composite("gradient-x-input", Ruleset(rules=False, epsilon=0.0), weight_scaled=False))
register_composite(Composite("lfp-0", Ruleset(epsilon=0.0)))
register_composite(Composite("lfp-epsilon", Ruleset(epsilon=1e-6)))
