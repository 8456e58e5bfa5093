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

Epsilon leaks `s_z * z * (1 - z / stabilize(z))` beside these; the dense reference checks it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from lfpgraph.rules.samples.table import Sample, samples
from torch import Tensor
from torch._ops import OpOverload

from lfpgraph.engine.program import make_program
from lfpgraph.registry import find_rule, rule

from .support.helpers import remove_rule, restore_rule
from .support.rule_cases import Case, make_case, plan_of, run, seed
from .support.rule_checks import (
    NO_DERIVATIVE,
    OPS,
    TOLERANCE,
    aten,
    case_id,
    check_conservation,
    check_gradient,
    check_identity,
    check_reference,
    close,
    conserves,
    family,
    is_identity,
    is_vjp,
    operations,
    pairs,
    passes_nothing,
    refusal,
    takes_gradient,
)


@pytest.mark.parametrize("op", OPS, ids=case_id)
def test_has_samples(op: OpOverload) -> None:
    found = samples(op)
    assert found, f"{op} has a rule but no samples: add a row to rules/samples/"
    assert len({sample.name for sample in found}) == len(found)


@pytest.mark.parametrize(("op", "sample"), pairs(takes_gradient, "gradient"), ids=case_id)
def test_gradient_composite_is_autograd(op: OpOverload, sample: Sample) -> None:
    check_gradient(make_case(op, sample))


@pytest.mark.parametrize(("op", "sample"), pairs(is_vjp, "reference"), ids=case_id)
def test_signal_is_the_dense_jacobian(op: OpOverload, sample: Sample) -> None:
    check_reference(make_case(op, sample))


@pytest.mark.parametrize(("op", "sample"), pairs(is_identity, "identity"), ids=case_id)
def test_activation_hands_its_reward_on(op: OpOverload, sample: Sample) -> None:
    check_identity(make_case(op, sample))


@pytest.mark.parametrize(("op", "sample"), pairs(conserves, "conservation"), ids=case_id)
def test_reward_is_conserved(op: OpOverload, sample: Sample) -> None:
    check_conservation(make_case(op, sample))


@pytest.mark.parametrize(("op", "sample"), pairs(passes_nothing, "nothing"), ids=case_id)
def test_no_reward_passes(op: OpOverload, sample: Sample) -> None:
    case = make_case(op, sample)
    assert run(case) == [None] * len(case.tensors)


@pytest.mark.parametrize("op", [op for op in OPS if family(op) in ("nothing", "comparison")], ids=case_id)
def test_blocking_rule_answers_none_for_each_tensor(op: OpOverload) -> None:
    entry, case = find_rule(op), make_case(op, samples(op)[0])
    assert entry is not None

    class Call:
        inputs = case.tensors

    assert entry.handler(Call(), case.signals[0], *case.sample.args) == [None] * len(case.tensors)


@functools.lru_cache(maxsize=64)  # the dtypes of an operation come one after the other
def _exactly(op: OpOverload, name: str) -> list[Tensor | None]:
    """The signals of a sample in float64, with a large epsilon."""
    (sample,) = (sample for sample in samples(op) if sample.name == name)
    return run(make_case(op, sample), epsilon=0.125)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch.")
)
@pytest.mark.parametrize("op", operations("dtype", often=3), ids=case_id)
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
        for x, found, expected in zip(case.tensors, run(case, epsilon=0.125), _exactly(op, exact.name)):
            assert (found is None) == (expected is None)
            if found is not None:
                assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)
                if family(op) != "nothing":
                    close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("op", operations("program", often=4), ids=case_id)
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
        def slightly_off(call, s, *args, **kwargs):  # type: ignore[no-untyped-def]
            answers = entry.handler(call, s, *args, **kwargs)
            return [a if a is None else a * 1.001 for a in answers]

        with pytest.raises(AssertionError):
            check(make_case(op, samples(op)[0]))
    finally:
        restore_rule(entry)
    check(make_case(op, samples(op)[0]))
