"""What the tests of rules check, case by case."""

from __future__ import annotations

import collections
from collections.abc import Callable

import pytest
import torch
from lfpgraph.rules.linear import ADDEND
from lfpgraph.rules.samples.table import Sample
from torch import Tensor
from torch._ops import OpOverload

from lfpgraph.numerics import stabilize
from lfpgraph.registry import find_rule, registered_rules

from .rule_cases import (
    Case,
    all_cases,
    as_reals,
    autograd,
    from_reals,
    jacobian,
    run,
    run_op,
    short_name,
)

aten = torch.ops.aten


# Those of the live engine stand for what autograd has done already; they are never run.
OPS = [entry.op for entry in registered_rules() if entry.op.namespace != "lfpgraph_live"]
CASES = all_cases()
LINEAR = {
    "contraction",
    "pooling",
    "selection",
    "view",
    "split",
    "product",
    "choice",
    "reduction",
    "random",
    "cast",
}
TRUE_VJP = LINEAR | {"normalisation", "softmax", "general", "rectifier", "transform"}
# torch raises in backward; its derivatives of as_strided_scatter and rrelu are wrong
NO_DERIVATIVE = {
    aten._sample_dirichlet.default,
    aten.as_strided_scatter.default,
    aten.bernoulli.p,
    aten.binomial.default,
    aten.detach_copy.default,
    aten.floor_divide.default,
    aten.heaviside.default,
    aten.normal_functional.default,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
    aten.remainder.Scalar_Tensor,
    aten.rrelu_with_noise_functional.default,
    aten.special_zeta.other_scalar,
}
SHARED = {"contraction", "product"}
HOMOGENEOUS = {aten.clamp.Tensor, aten.maximum.default, aten.minimum.default}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2}
ATTENTION_SHARES = {
    (0, 1, 2): (0.25, 0.25, 0.5),
    (0, 1, 2, 3): (0.25, 0.25, 0.5, 0.5),
    (1, 2): (0.5, 0.5, 0.5),
    (0,): (1.0, 1.0, 1.0),
    (2,): (1.0, 1.0, 1.0),
}
ADDENDS = {aten.addmm.default: (0,), aten.addmv.default: (0,), aten.baddbmm.default: (0,)}
ONE_AT_ZERO = {torch.ops.aten.exp.default, torch.ops.aten.exp2.default}  # and hand nothing on there
KNOWN: dict[str, str] = {}


def case_id(value: object) -> str | None:
    if isinstance(value, OpOverload):
        return short_name(value)
    return f"{value.name}-float64" if isinstance(value, Sample) else None


def operations(check: str, often: int = 1) -> list[object]:
    """All operations, known failures marked; of those that share a rule only each so many-th is no slow test."""
    result, sharing = [], collections.Counter[tuple[object, str]]()
    for op in OPS:
        rule, known = find_rule(op), KNOWN.get(f"{check}:{short_name(op)}")
        assert rule is not None
        shared = (rule.handler, rule.family.name)
        marks = [pytest.mark.xfail(strict=True, reason=known)] if known else []
        marks += [pytest.mark.slow] if sharing[shared] % often else []
        sharing[shared] += 1
        result.append(pytest.param(op, marks=marks))
    return result


def pairs(keep: Callable[[OpOverload, Sample], bool], check: str) -> list[object]:
    """The cases a test is for, known failures marked."""
    kept = []
    for op, sample in CASES:
        if keep(op, sample):
            reason = KNOWN.get(f"{check}:{short_name(op)}-{sample.name}")
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            kept.append(pytest.param(op, sample, marks=marks))
    return kept


def close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    """Equal to a tolerance relative to the largest entry; None is a zero; infinities in the same places."""
    if expected is None or found is None:
        for one in (found, expected):
            assert one is None or not one.any()
        return
    wide = torch.complex128 if expected.is_complex() else torch.float64
    found, expected = found.to(wide), expected.to(wide)
    assert found.shape == expected.shape
    if found.numel():
        size = max(1.0, expected.abs().nan_to_num(0, 0, 0).max().item())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size, equal_nan=True)


def family(op: OpOverload) -> str:
    entry = find_rule(op)
    assert entry is not None
    return entry.family.name


def check_gradient(case: Case) -> None:
    for found, expected in zip(run(case, "gradient"), autograd(case)):
        close(found, expected, 1e-10)


def takes_gradient(op: OpOverload, sample: Sample) -> bool:
    return bool(sample.active or sample.weight) and op not in NO_DERIVATIVE


def factor(case: Case, epsilon: float) -> list[Tensor]:
    """The signals at the outputs after the epsilon rule, written as in LFP eq. 8."""
    kind, actives = case.entry.family.epsilon, len(case.sample.active)
    weighted = bool(case.sample.weight or case.sample.bias)
    applies = (
        kind == "always" or (kind == "weighted" and actives <= 1 and weighted) or (kind == "mixing" and actives > 1)
    )
    if not applies:
        return case.signals
    return [
        s * z / stabilize(z, epsilon) if epsilon else s for s, z in zip(case.signals, run_op(case, case.tensors)[0])
    ]


def share_of(case: Case, place: int) -> float:
    """The part of the true signal that an operand gets: active factors share, addends and weights get all."""
    actives = case.sample.active
    if family(case.op) == "attention":
        return ATTENTION_SHARES[actives][place]
    factors = [i for i in actives if i not in ADDENDS.get(case.op, ())]
    return 1 / len(factors) if family(case.op) in SHARED and place in factors else 1.0


def check_reference(case: Case) -> None:
    """J^T s, with the epsilon rule's factor on s, for epsilon 0 and a large one."""
    matrices = {i: jacobian(case, i) for i in case.carriers}
    for epsilon in (0.0, 0.125):
        signals = torch.cat([as_reals(s) for s in factor(case, epsilon)])
        for i, found in enumerate(run(case, "lfp-0", epsilon)):
            assert i in matrices or found is None
            if i in matrices:
                expected = from_reals(matrices[i].mT @ signals, case.tensors[i]) * share_of(case, i)
                close(found, expected, 1e-12)


def is_vjp(op: OpOverload, sample: Sample) -> bool:
    rule = find_rule(op)
    assert rule is not None
    return rule.made_by is None and family(op) in TRUE_VJP | {"attention"} and takes_gradient(op, sample)


def check_identity(case: Case) -> None:
    """The active operand gets s z / x, the weight-like ones their true signal."""
    (place,) = case.sample.active
    x, s = case.tensors[place], case.signals[0]
    z = run_op(case, case.tensors)[0][0]
    for epsilon in (0.0, 0.125):
        divisor = stabilize(x, epsilon) if epsilon else torch.where(x == 0, torch.inf, x)
        if case.op in ONE_AT_ZERO:
            divisor = torch.where(x == 0, torch.inf, divisor)
        found = run(case, "lfp-0", epsilon)
        close(found[place], (s * z / divisor).sum_to_size(x.shape), 1e-12)
        for i in case.sample.weight:
            close(found[i], (jacobian(case, i).mT @ s.reshape(-1)).view(case.tensors[i].shape), 1e-12)


def is_identity(op: OpOverload, sample: Sample) -> bool:
    if family(op) == "comparison":
        return len(sample.active) == 1
    if family(op) == "quotient":
        return sample.active == (1,)
    return family(op) == "activation" and len(sample.active) == 1


def conserves(op: OpOverload, sample: Sample) -> bool:
    entry = find_rule(op)
    assert entry is not None
    if not entry.family.conserves or not (sample.active or sample.weight):
        return False
    if family(op) == "activation" and len(sample.active) > 1:
        return op in HOMOGENEOUS
    return family(op) != "comparison" or len(sample.active) == 1


def leak_of(case: Case, zeroed: tuple[int, ...]) -> list[Tensor]:
    """Reward that reaches none of the operands `zeroed`, per output entry (Note [Declared leaks])."""
    outputs = run_op(case, case.tensors)[0]
    if is_identity(case.op, case.sample):
        x = case.tensors[case.sample.active[0]]
        return [torch.where(x == 0, s * z, 0.0) for s, z in zip(case.signals, outputs)]
    if family(case.op) == "quotient":
        return [torch.zeros_like(z) for z in outputs]
    at_zero = run_op(case, [torch.zeros_like(t) if i in zeroed else t for i, t in enumerate(case.tensors)])[0]
    return [s * z for s, z in zip(case.signals, at_zero)]


def check_conservation(case: Case) -> None:
    signals = run(case, "lfp-0")
    rewards = [x * s if s is not None else torch.zeros(()) for x, s in zip(case.tensors, signals)]
    given = [s.double() * z for s, z in zip(case.signals, run_op(case, case.tensors)[0])]
    active = case.sample.active or case.sample.weight
    leak = leak_of(case, active)
    total = sum(z.sum() for z in given) - sum(z.sum() for z in leak)
    scale = max(1.0, sum(z.abs().sum().item() for z in given))
    assert abs(sum(rewards[i].sum() for i in active) - total).item() <= 1e-12 * scale
    shape = given[0].shape
    elementwise = case.entry.family.elementwise or is_identity(case.op, case.sample)
    if elementwise and all(case.tensors[i].shape == shape for i in active):
        close(sum((rewards[i] for i in active), torch.zeros(shape)), given[0] - leak[0], 1e-12)
    check_weights(case, rewards, total, leak, scale)


def check_weights(case: Case, rewards: list[Tensor], total: Tensor, leak: list[Tensor], scale: float) -> None:
    """A weight-like factor has the same reward as the activations it multiplies; an addend has the leak."""
    addend = family(case.op) in {"split", "choice", "view", "selection", "reduction"}
    if not case.sample.active or family(case.op) in {"activation", "comparison", "rectifier", "quotient"}:
        return
    added = sum(rewards[i].sum() for i in case.sample.active if i == ADDEND.get(case.op))
    for i in case.sample.weight:
        expected = sum(z.sum() for z in leak) if addend else total - added
        assert abs(rewards[i].sum() - expected).item() <= 1e-12 * scale
    for i in case.sample.bias:
        assert abs(rewards[i].sum() - sum(z.sum() for z in leak)).item() <= 1e-12 * scale


def passes_nothing(op: OpOverload, sample: Sample) -> bool:
    return family(op) == "nothing" or (family(op) == "comparison" and len(sample.active) != 1)


def refusal(case: Case) -> str | None:
    """Why torch itself cannot run the operation, or its derivative, in this dtype."""
    try:
        autograd(case)
    except (RuntimeError, NotImplementedError) as error:
        told = str(error).splitlines()[0]
        return told if any(word in told for word in ("not implemented", "not supported", "Low precision")) else None
    return None
