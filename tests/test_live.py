"""The table of live Python: whatever a model does between and inside its steps, a wrapped copy does what the plain one does.

Each case is a small model and a step (`support/live/`), taken three times beside a plain twin with the same seeds.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import lfpgraph
from lfpgraph.errors import LfpGraphError
from lfpgraph.live.interception import recorder

from .support.live.every import CASES
from .support.live.table import RECORDED, Result, assert_equal, first_call, first_feedback, run


@pytest.fixture(autouse=True)
def _nothing_stays_on() -> Iterator[None]:
    """After a case nothing records, and torch is as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert recorder() is None
    assert not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


SLOW = ("attention", "recurrent_states", "transformer_encoder")  # to trace


def _marked(names: Sequence[str]) -> list[Any]:
    """All cases; these are slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in names else name for name in CASES]


# Cases that the default engine takes statically as well, in the test before; of either kind some stay for the static one.
STATIC = [
    name for name, case in CASES.items() if case.static and name not in ("several_calls", "tied_weights", "codebook")
]
STATIC = [name for name in STATIC if name not in ("train_and_eval", "parts_called_alone", "unwrapped_in_the_middle")]
STATIC += (
    "autocast_inside chained_calls checkpointed_reentrant complex_layers complex_slices distributions exported_and_scripted "
    "list_of_rows masks_for_a_checkpoint one_and_true spikes_written upsampled"
).split()
SELDOM = [name for name, case in CASES.items() if not case.often]


@functools.cache
def plain(name: str) -> Result:
    """What the plain model does."""
    return run(CASES[name], None)


def _assert_said(caplog: pytest.LogCaptureFixture, says: tuple[str, ...]) -> None:
    """The log has a warning for each thing to be said, and no others."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in said if not any(part in text for part in says)] == []
    assert [part for part in says if not any(part in text for text in said)] == []


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_autograds(name: str) -> None:
    assert_equal(run(CASES[name], "gradient", "live"), plain(name), 0.0)


@pytest.mark.parametrize("name", _marked(SELDOM))
def test_default_engine_is_autograds(name: str) -> None:
    """With rules that change nothing; the second and third step run statically where nothing is lost by it."""
    assert_equal(run(CASES[name], RECORDED, "auto"), plain(name), 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_recorded_gradient_is_autograds(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Recorded, planned and amended like feedback, with rules that change nothing."""
    assert_equal(run(CASES[name], RECORDED, "live"), plain(name), 1e-9)
    stopped = (
        name == "spikes_written"
    )  # these rules hand nothing through a step, so that the last layer reads constants
    _assert_said(caplog, (*CASES[name].says, "computes nothing of the tensors") if stopped else CASES[name].says)


@pytest.mark.parametrize("name", _marked([*SLOW, *SELDOM, *STATIC]))
def test_static_gradient_is_autograds_or_refused(name: str) -> None:
    """The static engine is right, or says what it cannot keep; it is never silently another model."""
    try:
        found = run(CASES[name], "gradient", "static")
    except LfpGraphError as error:
        assert not CASES[name].static, error
        return
    assert_equal(found, plain(name), 1e-9)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.lfp])
def test_feedback_is_finite_and_moves_the_same(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Feedback runs, and where autograd has a gradient, and only there, there is feedback."""
    found = run(CASES[name], "lfp-epsilon", "live")
    assert [
        n for n, x in found.values if isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all()
    ] == []
    with_gradient = [[n for n, x in r.values if "gradient" in n and x is not None] for r in (found, plain(name))]
    assert with_gradient[0] == with_gradient[1]
    _assert_said(caplog, CASES[name].says)


WALKED = [(name, "lfp") for name, case in CASES.items() if case.same]
WALKED += [(name, "lfp-epsilon") for name in ("attention", "tied_weights", "state_carried")]  # halves, epsilons


@pytest.mark.parametrize(("name", "composite"), WALKED)
def test_feedback_is_that_of_the_walk(name: str, composite: str) -> None:
    """The feedback of a case's first call is what `lfpgraph.feedback` works out from a trace of it."""
    args, kwargs = first_call(CASES[name])
    found, expected = first_feedback(CASES[name], args, kwargs, lfpgraph.get_composite(composite))
    for n, x in expected.items():
        error = (found[n] - x).norm() if n in found else x.norm()
        assert error <= 1e-9 * x.norm() + 1e-13, n


WAYS = (
    "branches_on_data caches checkpointed counters_and_draws error_caught_inside frozen_and_thawed forward_hooks lora_scaling "
    "parametrized replaced_parts scripted sizes train_and_eval unused_parameters weights_written_in_forward"
).split()


@pytest.mark.parametrize("composite", ["lfp-epsilon", "lfp-gamma"])
@pytest.mark.parametrize("name", WAYS)
def test_feedback_remembers_nothing(name: str, composite: str) -> None:
    """Where steps take different ways, each has the feedback that a model wrapped just before it would have."""

    def rewrapped() -> Any:
        model, step = CASES[name].build()

        def one(model: Any, i: int) -> Any:
            lfpgraph.unwrap(model)
            return step(lfpgraph.wrap(model, composite, engine="live"), i)

        return model, one

    expected = run(replace(CASES[name], build=rewrapped), composite, "live", 4)
    assert_equal(run(CASES[name], composite, "live", 4), expected, 1e-10)


def test_autocast_as_in_forward() -> None:
    """A rule that runs an operation again does so under the autocast that the forward had there, and under no other."""
    grads = []
    for backward_inside in (True, False):
        torch.manual_seed(0)
        model = lfpgraph.wrap(
            torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)), "lfp-gamma", engine="live"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.ones(4, 6)).float().pow(2).mean()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
