"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingPackageError

__all__ = ["need"]


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name. extra: the extra of lfpgraph that brings it. what: who needs it, for the message.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise
        raise MissingPackageError(
            f"{what} needs {error.name}, which is not installed: pip install 'lfpgraph[{extra}]'"
        ) from None
