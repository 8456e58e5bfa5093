"""Every rule on every sample. Generated from the registry: an operation without samples fails.

Note [Declared leaks]: with epsilon 0 the rewards `x * s_x` of an operation's active operands, plus a leak,
equal the reward `z * s_z` of its output. The leaks, by family:

- contraction, pooling, selection, view, reduction, random, cast, split, product, choice, rectifier: what the
  operation gives when its active operands are zero, `s_z * f(0)`: the bias, an added or chosen constant or
  parameter, a padding value. An active addend of a fused product (addmm) is a term of its own, paid in full.
- activation, and comparison with the cast after it: entries where the active operand is zero receive none.
  Several active operands get the true vjp, which keeps reward only where f is homogeneous of degree one
  (maximum, minimum, clamp): atan2, pow and xlogy of two activations declare no conservation.
- quotient: none; the numerator takes all. With no active numerator it is an activation of the divisor.
- comparison of several active operands: everything. It has no float operand to hand reward to.
- normalisation, softmax, attention, general, nothing: conserve nothing that could be declared per operation.

Epsilon leaks `s_z * z * (1 - z / stabilize(z))` beside these; the dense reference checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from lfpgraph.rules.linear import ADDEND
from lfpgraph.rules.samples import Sample, samples
from torch import Tensor
from torch._ops import OpOverload

from lfpgraph.numerics import stabilize
from lfpgraph.program import make_program
from lfpgraph.registry import find_rule, registered_rules, remove_rule, restore_rule, rule

from .rule_cases import (
    Case,
    all_cases,
    as_reals,
    autograd,
    from_reals,
    jacobian,
    make_case,
    plan_of,
    run,
    run_op,
    seed,
    short_name,
)

aten = torch.ops.aten

OPS = [entry.op for entry in registered_rules()]
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
KNOWN: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case_id(value: object) -> str | None:
    if isinstance(value, OpOverload):
        return short_name(value)
    return f"{value.name}-float64" if isinstance(value, Sample) else None


def operations(check: str) -> list[object]:
    """All operations, known failures marked."""
    marks = {
        op: [pytest.mark.xfail(strict=True, reason=r)] for op in OPS if (r := KNOWN.get(f"{check}:{short_name(op)}"))
    }
    return [pytest.param(op, marks=marks.get(op, [])) for op in OPS]


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


@pytest.mark.parametrize("op", OPS, ids=case_id)
def test_has_samples(op: OpOverload) -> None:
    found = samples(op)
    assert found, f"{op} has a rule but no samples: add a row to rules/samples_*.py"
    assert len({sample.name for sample in found}) == len(found)


def check_gradient(case: Case) -> None:
    for found, expected in zip(run(case, "gradient"), autograd(case)):
        close(found, expected, 1e-10)


def takes_gradient(op: OpOverload, sample: Sample) -> bool:
    return bool(sample.active or sample.weight) and op not in NO_DERIVATIVE


@pytest.mark.parametrize(("op", "sample"), pairs(takes_gradient, "gradient"), ids=case_id)
def test_gradient_composite_is_autograd(op: OpOverload, sample: Sample) -> None:
    check_gradient(make_case(op, sample))


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
    return family(op) in TRUE_VJP | {"attention"} and takes_gradient(op, sample)


@pytest.mark.parametrize(("op", "sample"), pairs(is_vjp, "reference"), ids=case_id)
def test_signal_is_the_dense_jacobian(op: OpOverload, sample: Sample) -> None:
    check_reference(make_case(op, sample))


def check_identity(case: Case) -> None:
    """The active operand gets s z / x, the weight-like ones their true signal."""
    (place,) = case.sample.active
    x, s = case.tensors[place], case.signals[0]
    z = run_op(case, case.tensors)[0][0]
    for epsilon in (0.0, 0.125):
        divisor = stabilize(x, epsilon) if epsilon else torch.where(x == 0, torch.inf, x)
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


@pytest.mark.parametrize(("op", "sample"), pairs(is_identity, "identity"), ids=case_id)
def test_activation_hands_its_reward_on(op: OpOverload, sample: Sample) -> None:
    check_identity(make_case(op, sample))


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


@pytest.mark.parametrize(("op", "sample"), pairs(conserves, "conservation"), ids=case_id)
def test_reward_is_conserved(op: OpOverload, sample: Sample) -> None:
    check_conservation(make_case(op, sample))


def passes_nothing(op: OpOverload, sample: Sample) -> bool:
    return family(op) == "nothing" or (family(op) == "comparison" and len(sample.active) != 1)


@pytest.mark.parametrize(("op", "sample"), pairs(passes_nothing, "nothing"), ids=case_id)
def test_no_reward_passes(op: OpOverload, sample: Sample) -> None:
    case = make_case(op, sample)
    assert run(case) == [None] * len(case.tensors)


@pytest.mark.parametrize("op", [op for op in OPS if family(op) in ("nothing", "comparison")], ids=case_id)
def test_blocking_rule_answers_none_for_each_tensor(op: OpOverload) -> None:
    entry, case = find_rule(op), make_case(op, samples(op)[0])
    assert entry is not None

    class Node:
        inputs = case.tensors

    assert entry.handler(Node(), case.signals[0], *case.sample.args) == [None] * len(case.tensors)


def refusal(case: Case) -> str | None:
    """Why torch itself cannot run the operation, or its derivative, in this dtype."""
    try:
        autograd(case)
    except (RuntimeError, NotImplementedError) as error:
        told = str(error).splitlines()[0]
        return told if any(word in told for word in ("not implemented", "not supported", "Low precision")) else None
    return None


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch.")
)
@pytest.mark.parametrize("op", operations("dtype"), ids=case_id)
def test_shape_and_dtype(op: OpOverload, dtype: torch.dtype) -> None:
    for exact, sample in zip(samples(op), samples(op, dtype)):
        try:
            case = make_case(op, sample)
        except (RuntimeError, NotImplementedError) as error:
            assert dtype is not torch.float64 and "not implemented" in str(error)
            pytest.skip(f"torch: {error}")
        reason = refusal(case) if op not in NO_DERIVATIVE else None
        if reason is not None:
            assert dtype is not torch.float64
            pytest.skip(f"torch: {reason}")
        reference = run(make_case(op, exact), epsilon=0.125)
        for x, found, expected in zip(case.tensors, run(case, epsilon=0.125), reference):
            assert (found is None) == (expected is None)
            if found is not None:
                assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)
                if family(op) != "nothing":
                    close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("op", operations("program"), ids=case_id)
def test_program_equals_eager_walk(op: OpOverload) -> None:
    case = make_case(op, samples(op)[0])
    if not case.carriers:
        pytest.skip("only boolean operands: nothing to hand reward to")
    program = make_program(plan_of(case, "lfp-epsilon"), case.tensors)
    seed()
    with torch.no_grad():
        results = program.call_forward(*case.tensors)
        given = [case.signals[i] for i in program.signal_outputs]
        answers = program.call_feedback([*results[program.n_outputs :], *given])
    found: list[Tensor | None] = [None] * len(case.tensors)
    for place, answer in zip(program.wanted, answers):
        found[place] = answer
    kinds = [placeholder.kind for placeholder in program.plan.graph.placeholders]
    for one, other, kind, value in zip(found, run(case), kinds, case.tensors):
        assert (one is None) == (other is None)
        close(one, other * value.abs() if kind == "parameter" and other is not None else other, 1e-13)


@pytest.mark.parametrize("op", operations("deterministic"), ids=case_id)
def test_deterministic_and_inputs_unchanged(op: OpOverload) -> None:
    for sample in samples(op):
        case = make_case(op, sample)
        tensors, signals = [t.clone() for t in case.tensors], [s.clone() for s in case.signals]
        first, second = run(case), run(case)
        for one, other in zip(first, second):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        assert all(torch.equal(a, b) for a, b in zip([*tensors, *signals], [*case.tensors, *case.signals]))


WRONG = [
    (aten.mm.default, check_conservation),
    (aten.mm.default, check_reference),
    (aten.gelu.default, check_identity),
    (aten.gelu.default, check_conservation),
    (aten.add.Tensor, check_conservation),
    (aten.mul.Tensor, check_reference),
    (aten.div.Tensor, check_conservation),
    (aten.layer_norm.default, check_reference),
    (aten.sum.dim_IntList, check_conservation),
    (aten.scaled_dot_product_attention.default, check_reference),
]


@pytest.mark.parametrize(("op", "check"), WRONG, ids=case_id)
def test_a_wrong_rule_is_caught(op: OpOverload, check: Callable[[Case], None]) -> None:
    entry = remove_rule(op)
    assert entry is not None
    try:

        @rule(op, family=entry.family)
        def slightly_off(node, s, *args, **kwargs):  # type: ignore[no-untyped-def]
            answers = entry.handler(node, s, *args, **kwargs)
            return [a if a is None else a * 1.001 for a in answers]

        with pytest.raises(AssertionError):
            check(make_case(op, samples(op)[0]))
    finally:
        restore_rule(entry)
    check(make_case(op, samples(op)[0]))
