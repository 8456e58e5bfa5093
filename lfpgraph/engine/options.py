"""Options that `wrap`, `feedback`, `attribute` and the audits share, checked when they are given."""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from ..errors import InputError, LfpGraphError, check_choice
from ..passes.recompute import Share
from ..tracing.tracer import FALLBACKS

__all__ = ["Options"]

_SHARES = {"fast": None, "min": Share(0.3, repeated=0.15, most=0.6)}


@dataclass(frozen=True)
class Options:
    """How a model is traced and its program made and run.

    Attributes:
        on_missing: "derive" takes the true vjp of an operation without a rule; "error" refuses such an operation.
        fallback: "error", or "retrace" to trace real values where torch.export cannot trace.
        compile: run both graphs of a program through inductor.
        memory: how much feedback keeps, "fast", "min" or a number from 0 to 1 (see `wrap`).
        check: raise NonFiniteError where NaN or infinity appears.
        part: the outputs go to other code of the model, which may change them in place.
        error: what to raise for a value that an option does not know.
    """

    on_missing: str = "derive"
    fallback: str = "error"
    compile: bool = False
    memory: str | float = "fast"
    check: bool = False
    part: bool = False
    error: InitVar[type[LfpGraphError]] = InputError

    def __post_init__(self, error: type[LfpGraphError]) -> None:
        check_choice("on_missing", self.on_missing, ("derive", "error"), error)
        check_choice("fallback", self.fallback, FALLBACKS, error)
        if self.memory not in list(_SHARES) and not (isinstance(self.memory, float | int) and 0 <= self.memory <= 1):
            raise error(f'memory={self.memory!r} is not known; choose "fast", "min" or a share between 0 and 1')

    @property
    def share(self) -> Share | None:
        """How much is kept between forward and feedback; None keeps whatever is needed."""
        return _SHARES[self.memory] if isinstance(self.memory, str) else Share(self.memory)
