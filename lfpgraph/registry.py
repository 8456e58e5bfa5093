"""The registry: which rule an operation has. Filled by the files of `rules/`; users add their own.

A rule is a function `(call, s, *args, **kwargs) -> signals`. `call` is this run of the operation (see `Call`), `args` and
`kwargs` are the operation's own, and `s` is the signal at its output (a list with None for outputs without a signal, where
the operation has several). The answer is one signal for each tensor argument in order, None for none. The engine
applies epsilon, sums over users, un-broadcasts and casts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx
from torch._ops import OpOverload

from .errors import RuleError, check_choice
from .numerics import stabilize

__all__ = ["FAMILIES", "Call", "Family", "Handler", "Rule", "Signals", "find_rule", "registered_rules", "rule"]

Signals = list[Tensor | None]
Handler = Callable[..., Any]


class Call(Protocol):
    """One run of an operation, or of several that are one function (a region): the first argument of a rule.

    Attributes:
        op: the operation; of a region its last one.
        args, kwargs: the operation's own arguments; empty for a region.
        inputs: the tensor arguments, in order; for a region the tensors that come in from outside.
        output: what it returned.
        active, weightlike, wanted: for each tensor argument: it is an activation; it is made of parameters only; somebody
            waits for its signal.
        epsilon: the composite's stabilizer.
        stabilized: a rule that has divided by `stabilize(x, epsilon)` sets this to True, or to the epsilon that it took
            where that is not the composite's; the layer before then takes no second epsilon factor.
        sources: the graph's node of each tensor argument.
        nodes: the graph's nodes that run here: one, or those of a region.
        is_region: whether there are several.
        rectified: the output is read by a relu alone, so its negative entries hand nothing on.
        given: the signals at the model's outputs.
        direction: 1 where signals are rewards, -1 where they are gradients.
        reference, reference_output: `inputs` and `output` (the first of several) of the run at the reference point, for a
            composite that compares two runs; what does not depend on the model's inputs is the same object in both.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    output: Any
    active: tuple[bool, ...]
    weightlike: tuple[bool, ...]
    wanted: tuple[bool, ...]
    epsilon: float
    stabilized: bool | float
    sources: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    is_region: bool
    rectified: bool
    given: list[Tensor]
    direction: int

    @property
    def reference(self) -> list[Any]:
        """`inputs` of the run at the reference point (see above)."""
        raise RuleError(
            f"the rule of {self.op} compares two runs, as those of deeplift do; it cannot stand for a part of a composite that "
            "looks at one run"
        )

    @property
    def reference_output(self) -> Any:
        """`output`, or the first of several, of the run at the reference point."""
        return self.reference

    def vjp(self, s: Any, again: bool = False) -> Signals:
        """The true vector-Jacobian product: one signal for each wanted tensor argument, None for the others.

        Args:
            s: the signal at the output.
            again: there will be another call of `vjp` after this one.
        """
        ...

    def run(self, tensors: Sequence[Any], first: int | None = None) -> Any:
        """The result with other tensor arguments, in the order of `inputs`; a region's first so many operations' if asked."""
        ...

    def reward(self, s: Tensor) -> Tensor:
        """The reward of an output that holds the signal s."""
        ...

    def share(self, s: Tensor, total: Tensor, stabilizer: float) -> Tensor:
        """`reward(s) / stabilize(total, stabilizer)`: that reward for each unit of a sum of messages of the rule's own."""
        return self.reward(s) / stabilize(total, stabilizer)


@dataclass(frozen=True)
class Family:
    """A group of operations that reward passes in the same way.

    Attributes:
        name: the family's name, as reports print it.
        source: paper and equation of the rule.
        epsilon: when the composite's epsilon applies to the output: "always"; "weighted" (one active operand meets
            weight-like ones); "mixing" (two or more active operands); "never".
        elementwise: output element i depends on input elements i only, so runs of such ops can form one activation.
        affine: linear in each operand; a run of affine operations alone is no activation and keeps their rules.
        passes_form: a stabilized signal leaves as a stabilized signal (Note [Two forms of a signal] in `engine.propagate`).
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
    """How reward passes an operation: a row of the registry, or what a composite puts in its place (`Ruleset.handlers`).

    Attributes:
        handler: the function that answers with the signals of the operation's tensor arguments.
        op: the operation; `"library::operation"` for one of a library that need not be imported; None in a composite.
        family: what the engine may do with the operation (see `Family`).
        source: paper and equation.
        needs_vjp: the handler calls `call.vjp`, so the operation runs on a tape.
        is_vjp: the handler's answer is the true vector-Jacobian product, so it also serves where that is asked for.
        own_stabilizer: the handler divides by stabilized sums of its own; the engine applies no epsilon to the output.
        blocks: no reward passes, and the output counts as a constant.
        constants: operations whose outputs count as constants within a function that is written out (a region).
        made_by: makes the handler that a composite has for a node, `made_by(node, composite)`; `handler` is the gradient then.
    """

    handler: Handler
    op: OpOverload | str | None = None
    family: Family = CUSTOM
    source: str = "user"
    needs_vjp: bool = True
    is_vjp: bool = False
    own_stabilizer: bool = False
    blocks: bool = False
    constants: frozenset[OpOverload] = frozenset()
    made_by: Callable[[fx.Node, Any], Handler] | None = None


_RULES: dict[OpOverload | str, Rule] = {}


def rule(
    *ops: OpOverload | str,
    family: Family | str = CUSTOM,
    source: str | None = None,
    needs_vjp: bool = True,
    is_vjp: bool = False,
    override: bool | None = None,
    made_by: Callable[[fx.Node, Any], Handler] | None = None,
) -> Callable[[Handler], Handler]:
    """Register the decorated function as the rule of `ops`: `@rule(op)`, or `rule(op, op, op)(function)` for a table of them.

    Args:
        ops: operation overloads such as `torch.ops.aten.gelu.default`; a packet such as `torch.ops.aten.gelu` is refused,
            since overloads differ. An operation of a library that need not be imported: its name, `"library::operation"`.
        family: the family it belongs to (see `FAMILIES`); decides epsilon and regions. Default "custom".
        source: paper and equation; the family's own when absent.
        needs_vjp: whether the handler calls `call.vjp`; False saves the work of keeping it.
        is_vjp: whether the handler's answer is the true vector-Jacobian product, for operations that torch has no right
            derivative of.
        override: replace an existing rule. Default: only a user's "custom" rule may.
        made_by: see `Rule`.

    Raises:
        RuleError: the operation already has a rule, or is not an overload.
    """
    if not ops:
        raise RuleError("a rule needs an operation: @lfpgraph.rule(torch.ops.aten.gelu.default)")
    for op in ops:
        if not isinstance(op, OpOverload) and not (isinstance(op, str) and "::" in op):
            raise RuleError(f"{op!r} is not an operation overload; write e.g. torch.ops.aten.gelu.default")
    if isinstance(family, str):
        check_choice("family", family, FAMILIES, RuleError)
    kind = FAMILIES[family] if isinstance(family, str) else family
    may_override = kind is CUSTOM if override is None else override

    def register(handler: Handler) -> Handler:
        if not callable(handler):
            raise RuleError(f"{handler!r} is no rule; give a function (call, signal, *arguments)")
        for op in ops:
            if op in _RULES and not may_override:
                raise RuleError(
                    f"{op} already has the rule {_RULES[op].handler.__name__}; pass override=True to replace it"
                )
            _RULES[op] = Rule(handler, op, kind, source or kind.source, needs_vjp, is_vjp, made_by=made_by)
        return handler

    return register


def find_rule(op: Any) -> Rule | None:
    """The registered rule of an operation, or None."""
    return _RULES.get(op) or (_RULES.get(op.name()) if isinstance(op, OpOverload) else None)


def registered_rules(by_name: bool = False) -> list[Rule]:
    """All rules of operation overloads, sorted by operation name; `by_name`: those registered by `"library::operation"`."""
    return sorted((r for op, r in _RULES.items() if isinstance(op, str) == by_name), key=lambda entry: str(entry.op))
