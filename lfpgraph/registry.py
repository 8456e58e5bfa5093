"""The registry: which rule an operation has. Filled by the files of `rules/`; users add their own.

A rule is a function `(node, s, *args, **kwargs) -> signals`. `args` and `kwargs` are the operation's own;
`s` is the signal at its output (a tuple with None where an operation has several outputs); the answer is one
signal for each tensor argument in order, None for none. `node` (a `Call`) offers the operation's true
vector-Jacobian product as `node.vjp(s)`, its output as `node.output`, and which arguments are active.
The engine applies epsilon, sums over users, un-broadcasts and casts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch._ops import OpOverload

from .errors import RuleError

__all__ = ["FAMILIES", "Family", "Rule", "find_rule", "registered_rules", "rule"]


@dataclass(frozen=True)
class Family:
    """A group of operations that share one rule.

    Attributes:
        name: the family's name, as reports print it.
        source: paper and equation of the rule.
        epsilon: when the composite's epsilon applies to the output: "always"; "weighted" (one active operand meets
            weight-like ones); "mixing" (two or more active operands); "never".
        elementwise: output element i depends on input elements i only, so runs of such ops can form one activation.
        affine: linear in each operand (an affine run keeps the rules of its own operations).
        passes_form: a stabilized signal leaves as a stabilized signal (views, see `propagate`).
        conserves: the inputs' rewards add up to the output's, but for declared leaks.
    """

    name: str
    source: str
    epsilon: str = "never"
    elementwise: bool = False
    affine: bool = False
    passes_form: bool = False
    conserves: bool = True


def _family(*args: Any, **kwargs: Any) -> Family:
    family = Family(*args, **kwargs)
    if family.name in FAMILIES:
        raise RuleError(f"family {family.name!r} is declared twice")
    FAMILIES[family.name] = family
    return family


FAMILIES: dict[str, Family] = {}

CUSTOM = _family("custom", "user")
CONTRACTION = _family("contraction", "Bach et al. 2015; LFP eq. 7; AttnLRP prop. 3.3", epsilon="weighted", affine=True)
POOLING = _family("pooling", "LFP (average pooling is linear)", epsilon="always", affine=True)
SELECTION = _family("selection", "LRP-0 on the selected entries", affine=True)
VIEW = _family("view", "a permutation or copy of entries", affine=True, passes_form=True)
SPLIT = _family("split", "AttnLRP eq. 8", epsilon="mixing", elementwise=True, affine=True)
PRODUCT = _family("product", "AttnLRP prop. 3.2", epsilon="weighted", elementwise=True, affine=True)
QUOTIENT = _family("quotient", "this project: the numerator takes all", elementwise=True)
ACTIVATION = _family("activation", "LFP section 3; AttnLRP eq. 9", elementwise=True)
RECTIFIER = _family("rectifier", "LFP section 3 (f(x)/x equals the slope)", elementwise=True, passes_form=True)
COMPARISON = _family("comparison", "LFP (step functions): reward passes inside a run only", elementwise=True)
CHOICE = _family("choice", "LRP-0 on the chosen entries", elementwise=True, affine=True)
REDUCTION = _family("reduction", "AttnLRP eq. 8", epsilon="always", affine=True)
TRANSFORM = _family("transform", "a fixed linear map of complex numbers, true vjp", affine=True, conserves=False)
NORMALISATION = _family("normalisation", "lfprop (true vjp, epsilon)", epsilon="always", conserves=False)
SOFTMAX = _family("softmax", "AttnLRP prop. 3.1", conserves=False)
RANDOM = _family("random", "linear at the drawn mask", affine=True, passes_form=True)
ATTENTION = _family("attention", "AttnLRP prop. 3.1, 3.3", conserves=False)
CAST = _family("cast", "a copy in another dtype", elementwise=True, affine=True, passes_form=True)
NOTHING = _family("nothing", "no reward passes", conserves=False)
GENERAL = _family("general", "true vjp", conserves=False)


@dataclass(frozen=True)
class Rule:
    """A row of the registry: an operation, its handler and where it comes from."""

    op: OpOverload
    handler: Callable[..., Any]
    family: Family
    source: str
    needs_vjp: bool = True
    samples: Callable[[], Iterable[Any]] | None = field(default=None, compare=False)


_RULES: dict[OpOverload, Rule] = {}


def rule(
    *ops: OpOverload,
    family: Family | str = CUSTOM,
    source: str | None = None,
    samples: Callable[[], Iterable[Any]] | None = None,
    needs_vjp: bool = True,
    override: bool | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the rule of `ops` (overloads such as `torch.ops.aten.gelu.default`).

    Args:
        ops: operation overloads; a packet such as `torch.ops.aten.gelu` is refused, since overloads differ.
        family: the family it belongs to (see `FAMILIES`); decides epsilon and regions. Default "custom".
        source: paper and equation; the family's own when absent.
        samples: returns sample arguments, from which the suite generates tests.
        needs_vjp: whether the handler calls `node.vjp`; False saves the work of keeping it.
        override: replace an existing rule. Default: only a user's "custom" rule may.

    Raises:
        RuleError: the operation already has a rule, or is not an overload.
    """
    kind = FAMILIES[family] if isinstance(family, str) else family
    may_override = kind is CUSTOM if override is None else override

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if not isinstance(op, OpOverload):
                raise RuleError(f"{op!r} is not an operation overload; write e.g. torch.ops.aten.gelu.default")
            if op in _RULES and not may_override:
                raise RuleError(
                    f"{op} already has the rule {_RULES[op].handler.__name__}; pass override=True to replace it"
                )
            _RULES[op] = Rule(op, handler, kind, source or kind.source, needs_vjp, samples)
        return handler

    return register


def rows(
    family: Family,
    handler: Callable[..., Any],
    ops: Sequence[OpOverload],
    source: str | None = None,
    needs_vjp: bool = True,
) -> None:
    """Register one handler for a list of operations, as the tables in `rules/` do."""
    rule(*ops, family=family, source=source, needs_vjp=needs_vjp, override=False)(handler)


def attach_samples(op: OpOverload, samples: Callable[[], Iterable[Any]]) -> None:
    """Give an already registered rule its samples."""
    old = _RULES[op]
    _RULES[op] = Rule(old.op, old.handler, old.family, old.source, old.needs_vjp, samples)


_NAMED: dict[str, tuple[Family, Callable[..., Any]]] = {}


def rows_by_name(family: Family, handler: Callable[..., Any], names: Sequence[str]) -> None:
    """Register a handler for operations of other libraries (`"library::operation"`), which need not be imported."""
    _NAMED.update({name: (family, handler) for name in names})


def named_operations() -> dict[str, str]:
    """What `rows_by_name` has registered: operation and family."""
    return {name: family.name for name, (family, _) in _NAMED.items()}


def find_rule(op: Any) -> Rule | None:
    """The registered rule of an operation, or None."""
    found = _RULES.get(op)
    if found is None and isinstance(op, OpOverload) and op.name() in _NAMED:
        family, handler = _NAMED[op.name()]
        found = _RULES[op] = Rule(op, handler, family, family.source)
    return found


def remove_rule(op: OpOverload) -> Rule | None:
    """Take a rule out of the registry and return it (tests and experiments)."""
    return _RULES.pop(op, None)


def restore_rule(entry: Rule) -> None:
    """Put back what `remove_rule` returned."""
    _RULES[entry.op] = entry


def registered_rules() -> list[Rule]:
    """All rules, sorted by operation name."""
    return sorted(_RULES.values(), key=lambda entry: str(entry.op))
