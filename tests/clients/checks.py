"""One check that every row of docs/clients.md goes through: what a client's first step gives its optimizer, by several ways."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import LiveOnlyError, TraceError

__all__ = ["FINE", "WAYS", "check_first_step", "difference", "grads_of", "wrapped"]

# The true gradient by the way that feedback goes: recorded, planned, amended by rules that change nothing.
lfpgraph.register_composite(
    lfpgraph.Composite(
        "recorded", lfpgraph.Ruleset(rules=False, epsilon=0.0, scale="signal"),
        overrides=(("no.such.module", lfpgraph.Ruleset()),),
    )
)  # fmt: skip
# For comparisons of which one side has no place for an epsilon (a fused head, a loop of one's own).
FINE = lfpgraph.get_composite("lfp").with_options(epsilon=1e-10)

WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,  # not wrapped
    "wrapped": {},  # as docs/clients.md has it: lfpgraph.wrap(model)
    "traced": {
        "engine": "static"
    },  # the same feedback by a second way, which shares no step of the walk with the first
    "gradient": {"composite": "gradient"},
    "recorded": {"composite": "recorded", "engine": "live"},
    "fine": {"composite": FINE},
    "fine, traced": {"composite": FINE, "engine": "static"},
}


def wrapped(model: Any, way: str) -> Any:
    """The model, wrapped as this way has it."""
    options = WAYS[way]
    return model if options is None else lfpgraph.wrap(model, **options)


def grads_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of a model, where it has any."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The largest difference between gradients of one name, over the largest entry of the one wanted."""
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    scale = max(float(g.abs().max()) for g in want.values())
    return max(
        float((got[n] - want[n]).abs().max()) / max(float(want[n].abs().max()), 1e-4 * scale, 1e-30) for n in want
    )


def _by(
    first: Callable[[str], dict[str, Tensor]], second: Callable[[], dict[str, Tensor]] | str | None
) -> dict[str, Tensor] | None:
    """The feedback by the second way; None where there is none."""
    if not isinstance(second, str):
        return second() if second is not None else None
    try:
        return first(second)
    except (LiveOnlyError, TraceError) as refusal:
        print("no second way:", refusal)
        return None


def check_first_step(
    first: Callable[[str], dict[str, Tensor]],
    caplog: pytest.LogCaptureFixture,
    rounding: float = 1e-5,
    second: Callable[[], dict[str, Tensor]] | str | None = "traced",
    told: str = "",
) -> dict[str, Tensor]:
    """That `lfpgraph.wrap(model)` gives the client feedback, the right one, and says nothing but `told`; returns it.

    Args:
        first: the gradients that the optimizer gets at its first step, with the model wrapped in one of `WAYS`.
        rounding: how far two ways to the same numbers may be apart.
        told: words of a warning that is to come.
        second: another way to the feedback, a name of `WAYS` or a function; None where there is none. A model that the
            static engine refuses has none: what runs as Python alone is the live engine's.
    """
    plain = first("plain")
    assert plain
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        assert difference(first("gradient"), plain) < min(rounding, 1e-4)
        assert difference(first("recorded"), plain) < rounding
        feedback = first("wrapped")
        other = _by(first, second) or feedback
    said = [record.getMessage() for record in caplog.records if record.name == "lfpgraph"]
    assert all(told and told in line for line in said) and bool(said) == bool(told)
    assert set(feedback) == set(plain) and difference(feedback, plain) > min(100 * rounding, 0.1)
    assert all(bool(torch.isfinite(g).all()) for g in feedback.values())
    assert difference(feedback, other) < rounding
    return feedback
