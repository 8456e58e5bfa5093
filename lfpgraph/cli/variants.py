"""The coverage report of a command-line TARGET: as it is, in eval mode or with real values, whichever traces first."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ..composites.composite import Composite
from ..errors import LfpGraphError
from ..reports.covered import CoverageReport, coverage
from .models import LARGEST_REAL, ModelTarget

__all__ = ["first_report"]

log = logging.getLogger("lfpgraph")


def first_report(found: ModelTarget, composite: str | Composite = "lfp") -> CoverageReport:
    """The report of the model as it is; where that does not trace, in eval mode; then with real tensors, if they fit.

    Raises:
        LfpGraphError: what the first form said, if none traces.
    """
    first: LfpGraphError | None = None
    for form, note in _forms(found):
        name = found.name + (f" ({note})" if note else "")
        try:
            return coverage(form.model, form.args, form.kwargs, composite=composite, name=name)
        except LfpGraphError as error:
            log.info("%s: %s", name, error)
            first = first or error
    assert first is not None
    raise first


def _forms(found: ModelTarget) -> Iterator[tuple[ModelTarget, str]]:
    training = found.model.training
    yield found, ""
    if training:
        found.model.eval()
        yield found, "eval mode"
    if found.rebuild is not None and sum(p.numel() for p in found.model.parameters()) <= LARGEST_REAL:
        real = ModelTarget(found.name, *found.rebuild())
        yield real, "real values"
        real.model.eval()
        yield real, "real values, eval mode"
