"""All cases of live Python: each module here puts its own into the table."""

from . import (  # noqa: F401  (fill CASES)
    arguments,
    backwards,
    copies,
    functions,
    habits,
    layers,
    modules,
    parts,
    recurrent,
    states,
    tools,
)
from .odd import callers, further, hidden, inner, pythonic, unreached, values, writes  # noqa: F401
from .table import CASES

__all__ = ["CASES"]
