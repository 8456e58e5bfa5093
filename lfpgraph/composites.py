"""Composites: which rule and which epsilon each part of a model gets.

"Composite" is the field's word (zennit, LXT) for a mapping from operations to rules.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch._ops import OpOverload

from .errors import CompositeError

if TYPE_CHECKING:
    from .structure import Structure
    from .trace.graph import OpGraph

__all__ = ["Composite", "Ruleset", "composite_names", "get_composite", "register_composite"]


@dataclass(frozen=True)
class Ruleset:
    """How the operations of one part of a model are treated.

    Attributes:
        rules: True applies the registry's rules; False the true gradient everywhere.
        epsilon: the stabilizer of the epsilon rule (LFP eq. 8), in units of the activation; 0 is the zero rule.
        handlers: rules that replace the registry's for single operations.
    """

    rules: bool = True
    epsilon: float = 1e-6
    handlers: Mapping[OpOverload, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Composite:
    """A ruleset for the whole model, overridden per module path.

    Attributes:
        name: as users select it.
        default: the ruleset of every operation that no override matches.
        overrides: pairs of a module-path pattern (`encoder.layer.0.*`, shell style) and a ruleset; the last match wins.
        weight_scaled: feedback is `abs(w) * s_w` (LFP eq. 6); False gives the plain signal s_w.
        prefix: where in the model the traced module is, if it is a part; with a dot behind it.
        structure: reads the graph and says which runs are one unit, which rules single operations get, and where no
            reward passes (see `structure`); None for the usual regions.
        online: run the model again inside feedback, step by step of an unrolled loop, and keep nothing (see `online`).
    """

    name: str
    default: Ruleset = Ruleset()
    overrides: tuple[tuple[str, Ruleset], ...] = ()
    weight_scaled: bool = True
    prefix: str = ""
    structure: Callable[[OpGraph], Structure] | None = None
    online: bool = False

    def ruleset(self, path: str) -> Ruleset:
        """The ruleset for the module at a dotted path."""
        path = f"{self.prefix}{path}".rstrip(".")
        for pattern, ruleset in reversed(self.overrides):
            if fnmatch.fnmatchcase(path, pattern):
                return ruleset
        return self.default

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

    def within(self, name: str) -> Composite:
        """This composite for the part of the model at `name`, whose graph knows nothing of the rest."""
        return replace(self, prefix=f"{self.prefix}{name}.")

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
register_composite(Composite("lfp-0", Ruleset(epsilon=0.0)))
register_composite(Composite("lfp-epsilon", Ruleset(epsilon=1e-6)))
