"""The settings of a Trainer in groups, each checked when it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..composites.composite import Composite
from ..errors import TrainingError, near
from .evaluation import Metric
from .logs import Logger
from .objective import Objective

__all__ = ["Evaluation", "Feedback", "Loading", "Running", "Saving", "Settings", "Update"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _is_path(value: Any) -> bool:
    return (
        isinstance(value, str | os.PathLike) and os.fspath(value) not in ("", b"") and isinstance(os.fspath(value), str)
    )


# What settings of these names must be: a test, and how a message says it.
_COUNT = _is_count, "must be a whole number of 1 or more"
_COUNT_OR_NONE = lambda v: v is None or _is_count(v), "must be a whole number of 1 or more, or None"  # noqa: E731
_RHYTHM = lambda v: _is_count(v) or v == "epoch", 'is not known; give "epoch" or a number of steps'  # noqa: E731
_SEVERAL = _is_several, "must be a list"
_MUST: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("accumulate", "batch_size", "epochs", "keep"), _COUNT),
    **dict.fromkeys(("max_steps", "patience"), _COUNT_OR_NONE),
    **dict.fromkeys(("eval_every", "save_every"), _RHYTHM),
    **dict.fromkeys(("metrics", "loggers", "policies"), _SEVERAL),
    "lr": (lambda v: _is_number(v) and 0 <= v < math.inf, "must be a finite number of 0 or more"),
    "clip": (lambda v: v is None or (_is_number(v) and v > 0), "must be a number above 0, or None for no bound"),
    "margin": (lambda v: _is_number(v) and 0 <= v < math.inf, "must be a finite number of 0 or more"),
    "seed": (lambda v: v == 0 or (_is_count(v) and v < 2**32), "must be a whole number from 0 to 2**32 - 1"),
    "workers": (lambda v: v == 0 or _is_count(v), "must be a whole number of 0 or more"),
    "folder": (lambda v: v is None or _is_path(v), "must be the path of a folder, or None"),
    "progress": (lambda v: v in (True, False, "auto"), 'is not known; give True, False or "auto"'),
}


@dataclass(frozen=True)
class _Group:
    """Settings that are checked when they are given."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            fits, words = _MUST.get(name, (lambda v: True, ""))
            if not fits(value):
                raise TrainingError(f"{name}={value!r} {words}")


@dataclass(frozen=True)
class Feedback(_Group):
    """How the model turns a reward into feedback.

    Attributes:
        composite: rules of `wrap`; None leaves the model as it is (backprop, if nobody has wrapped it).
        wrap_options: further arguments of `wrap`.
        policies: of `lfpgraph.training.policies`, applied in order between backward and step.
    """

    composite: str | Composite | None = "lfp"
    wrap_options: Mapping[str, Any] | None = None
    policies: Sequence[Any] = ()


@dataclass(frozen=True)
class Loading(_Group):
    """How a dataset becomes batches; a DataLoader has settings of its own.

    Attributes:
        batch_size: rows of a batch, which the processes share.
        workers, collate: of the DataLoader that is made for a dataset.
    """

    batch_size: int = 32
    workers: int = 0
    collate: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Update(_Group):
    """A step of the optimizer.

    Attributes:
        optimizer: an optimizer, a function of the parameters, or the name of a class of torch.optim, used with `lr`.
        scheduler: a scheduler, a function of (optimizer, steps), or "constant", "cosine", "linear", "onecycle". It moves at
            every step; ReduceLROnPlateau at every evaluation.
        accumulate: so many batches make one step.
        clip: largest norm of all gradients together; None for none.
        check_finite: stop at NaN or infinity in loss or gradients, naming the operation.
    """

    optimizer: Any = "AdamW"
    lr: float = 1e-3
    scheduler: Any = None
    accumulate: int = 1
    clip: float | None = 1.0
    check_finite: bool = True


@dataclass(frozen=True)
class Running(_Group):
    """How long the run is, and on what.

    Attributes:
        epochs, max_steps: the run ends at whichever comes first.
        seed: of the order of the data, and of all random generators at the start.
        mixed_precision: "no", "bf16", "fp16"; None takes what `accelerate launch` says.
        device: "cpu" keeps off accelerators; None takes what there is.
    """

    epochs: int = 1
    max_steps: int | None = None
    seed: int = 0
    mixed_precision: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Evaluation(_Group):
    """What is measured on the evaluation data, and what follows from it.

    Attributes:
        metrics: names or {name: function of all outputs and all labels}.
        eval_every: in steps, or "epoch".
        monitor: the figure that says what is best.
        greater: whether more of it is better; None: not, where its name holds "loss", "error" or "perplexity".
        patience, margin: the run stops after so many evaluations without an improvement by more than `margin`.
        load_best: at the end, put back the weights that were best.
    """

    metrics: Sequence[str] | Mapping[str, Metric] = ()
    eval_every: int | str = "epoch"
    monitor: str = "eval_loss"
    greater: bool | None = None
    patience: int | None = None
    margin: float = 0.0
    load_best: bool = False

    @property
    def chooses(self) -> bool:
        """Whether something is asked for that only figures on the evaluation data can tell."""
        return self.patience is not None or self.load_best or self.monitor != Evaluation.monitor


@dataclass(frozen=True)
class Saving(_Group):
    """What a run leaves behind, and what it shows.

    Attributes:
        folder: for checkpoints and logs; None for neither.
        save_every: in steps, or "epoch".
        keep: how many checkpoints stay, besides the best one.
        loggers: "jsonl", "csv", "tensorboard", or objects with `write(record)` and `close()`.
        progress: True, False, or "auto": on a terminal.
    """

    folder: str | os.PathLike[str] | None = None
    save_every: int | str = "epoch"
    keep: int = 2
    loggers: Sequence[str | Logger] = ("jsonl", "csv")
    progress: bool | str = "auto"


@dataclass(frozen=True)
class Settings:
    """The groups of a Trainer's settings; no two groups have a setting of the same name."""

    objective: Objective = Objective()
    feedback: Feedback = Feedback()
    loading: Loading = Loading()
    update: Update = Update()
    running: Running = Running()
    evaluation: Evaluation = Evaluation()
    saving: Saving = Saving()

    @classmethod
    def of(cls, single: Mapping[str, Any], **groups: Any) -> Settings:
        """Put single settings into their groups; a group that is None has its defaults.

        Raises:
            TypeError: a setting that no group has, or a group of another class.
        """
        made: dict[str, Any] = {group.name: group.default for group in fields(cls)}
        homes = {setting.name: name for name, group in made.items() for setting in fields(group)}
        for name in single:
            if name not in homes:
                raise TypeError(f"Trainer takes no argument {name!r}{near(name, [*homes, *made])}")
        for name, default in made.items():
            group = default if groups.get(name) is None else groups[name]
            if type(group) is not type(default):
                raise TypeError(f"{name}= must be of the class {type(default).__name__}, not {type(group).__name__}")
            made[name] = replace(group, **{key: value for key, value in single.items() if homes[key] == name})
        return cls(**made)
