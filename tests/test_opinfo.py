"""The live engine on PyTorch's own databases of operations and modules, held to tests/golden/oracles.csv."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("expecttest", reason="the database of operations needs it")

from tools.oracles import MOST, lines, misses, run  # noqa: E402

from .support.opinfo import differentiable, module_outcomes, modules, outcomes  # noqa: E402


def test_a_sample_of_operations() -> None:
    """Sixty operations and twenty modules, always the same: gradients equal autograd's; all but four known ones have rules."""
    known, chosen = lines(), random.Random(13)
    found = [o for op in chosen.sample(differentiable(), 60) for o in outcomes(op, most=1)]
    found += [o for info in chosen.sample(modules(), 20) for o in module_outcomes(info, most=1)]
    assert len(found) >= 70
    derived = {line.name for line in known.values() if line.engine == "live" and line.derived}
    assert derived == {"_batch_norm_with_update", "sparse_mm_reduce", "sparse_sampled_addmm", "to_sparse"}
    missed = [o for o in found if (o.gradient, o.feedback) != ("equal", "finite")]
    assert [
        o for o in missed if o.name not in derived or (o.gradient, o.feedback) != ("equal", "finite, no rule")
    ] == []
    assert {("live", "operation", o.name) for o in found} <= {("live", "operation", name) for _, _, name in known}


def test_sparse_tensors_of_compressed_rows() -> None:
    """Without an epsilon the gradient passes, as by any operation without a rule; a rule with one is refused, and says so."""
    op = next(op for op in differentiable() if op.formatted_name == "sparse_sampled_addmm")
    (found,) = outcomes(op, most=1)
    assert (found.gradient, found.feedback) == ("equal", "finite, no rule")
    (found,) = outcomes(op, most=1, composite="lfp-epsilon")
    assert found.gradient == "equal" and found.feedback.startswith("refused") and "to_dense" in found.feedback


def test_the_table_holds_what_is_promised() -> None:
    """At least 99 of 100 samples equal to autograd, and whatever is not is refused with an error of ours."""
    for engine, kind in MOST:
        part = [line for line in lines().values() if (line.engine, line.kind) == (engine, kind)]
        samples = sum(line.samples for line in part)
        assert sum(line.samples - min(line.equal, line.finite) - line.refused for line in part) <= 0.001 * samples
        assert sum(line.equal for line in part) >= 0.99 * samples


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(("engine", "kind"), MOST)
def test_every_sample(engine: str, kind: str, part: int) -> None:
    known = lines()
    found = list(run(engine, kind, MOST[engine, kind], part, 4))
    assert len(found) >= 25
    assert [text for line in found if (text := misses(line, known))] == []
