"""Exceptions a user of lfpgraph can meet. Every message names what failed, where, and what to do.

Also here: functions that quote other errors, and names near a wrong one, in such a message.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = [
    "AttributionError",
    "CheckpointError",
    "CompositeError",
    "DataDependentError",
    "DataError",
    "InputError",
    "LfpGraphError",
    "LiveOnlyError",
    "MissingPackageError",
    "NoRuleError",
    "NonFiniteError",
    "PolicyError",
    "OnnxError",
    "RewardError",
    "RuleError",
    "TargetError",
    "TraceError",
    "TrainingError",
    "TrainingInterrupted",
    "WrapError",
    "check_choice",
    "check_count",
    "first_line",
    "near",
    "one_line",
    "path_of",
    "printable",
    "text_of",
]


class LfpGraphError(Exception):
    """Base of every exception that lfpgraph raises on purpose."""


class TraceError(LfpGraphError):
    """The model could not be traced into an operation graph."""


class DataDependentError(TraceError):
    """The model's forward takes a Python decision on a tensor's value, so one graph cannot stand for it."""


class WrapError(LfpGraphError):
    """A model wrapped twice, unwrapped without having been wrapped, or used in a way that its engine cannot follow."""


class LiveOnlyError(TraceError, WrapError):
    """The model does what no program keeps, and the static engine was asked for."""


class NoRuleError(LfpGraphError):
    """Operations on the way of the reward have no rule and cannot be derived."""


class RuleError(LfpGraphError):
    """A rule is registered twice, has parameters that it cannot have, or answered with the wrong number or shape of signals."""


class CompositeError(LfpGraphError):
    """An unknown composite, or options that a composite does not have."""


class RewardError(LfpGraphError):
    """A reward of the wrong shape or kind, or no output that could take it."""


class InputError(LfpGraphError):
    """The model or its inputs offer nothing that a reward could reach, or an option has a value it does not know."""


class AttributionError(LfpGraphError):
    """What is to be explained does not exist or is ambiguous, or an explanation cannot be shown."""


class NonFiniteError(LfpGraphError):
    """NaN or infinity in outputs, reward or signals while checking is on."""


class TargetError(LfpGraphError):
    """A `module:function` that does not exist or does not return what is expected."""


class DataError(LfpGraphError):
    """Training data that cannot be used: none at all, NaN, labels that do not fit the outputs."""


class PolicyError(LfpGraphError):
    """An update policy with arguments it does not know, or with nothing to act on."""


class CheckpointError(LfpGraphError):
    """A checkpoint that cannot be written or read, or that belongs to another model or optimizer."""


class TrainingError(LfpGraphError):
    """Arguments of a Trainer that do not go together."""


class TrainingInterrupted(LfpGraphError):
    """Training was asked to stop by a signal (Ctrl-C); it stopped after a whole step."""


class MissingPackageError(LfpGraphError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class OnnxError(LfpGraphError):
    """An ONNX file that cannot be read, run or trained, or a model or training step that has no ONNX form."""


def check_choice(option: str, value: object, choices: Collection[object], error: type[LfpGraphError]) -> None:
    """Raise `error`, with a message that lists the choices, unless the value of an option is one of them."""
    if value not in list(choices):
        raise error(f"{option}={repr(value)[:200]} is not known; choose one of {', '.join(map(str, choices))}")


def check_count(option: str, value: object, error: type[LfpGraphError], least: int = 1) -> None:
    """Raise `error` unless the value of an option is a whole number, and not less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{option}={value!r} must be a whole number, at least {least}")


def path_of(path: object, error: type[LfpGraphError]) -> Path:
    """A path that was given as text or as a path; anything else raises `error`."""
    if not isinstance(path, str | os.PathLike):
        raise error(f"path={repr(path)[:200]} is no path of a file")
    return Path(path)


def near(name: object, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: known names like it, if there are any."""
    close = difflib.get_close_matches(str(name)[:200], list(names), n=3)
    return f"; near it: {', '.join(close)}" if close else ""


def text_of(error: BaseException | None) -> str:
    """What an error of any origin says; where its own text fails, that."""
    try:
        return str(error)
    except Exception as other:
        return f"(it has no text: its own __str__ raises {type(other).__name__})"


def one_line(error: BaseException, most: int = 200) -> str:
    """A message of any length as one line of at most so many characters, to be quoted in another."""
    return " ".join(text_of(error).split())[:most]


def first_line(error: BaseException | None, most: int = 300) -> str:
    """The first line of a message that is not empty, at most so many characters of it."""
    return next((line.strip() for line in text_of(error).splitlines() if line.strip()), "")[:most]


def printable(text: str) -> str:
    """A text of any origin without what a terminal or a reader would obey: controls and turned writing are shown as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
