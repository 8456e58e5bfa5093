"""What a Trainer works with: accelerator, optimizer and scheduler, by name, by function, or as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from ..errors import InputError, TrainingError, one_line
from ..optional import need

__all__ = ["make_accelerator", "make_optimizer", "make_scheduler", "waits_for_metric"]

_SCHEDULES: dict[str, Callable[[Optimizer, int], Any]] = {
    "constant": lambda o, steps: lr_scheduler.ConstantLR(o, factor=1.0, total_iters=1),
    "cosine": lambda o, steps: lr_scheduler.CosineAnnealingLR(o, steps),
    "linear": lambda o, steps: lr_scheduler.LinearLR(o, 1.0, 0.0, steps),
    "onecycle": lambda o, steps: lr_scheduler.OneCycleLR(
        o, [group["lr"] for group in o.param_groups], total_steps=steps, cycle_momentum=False
    ),
}


def make_accelerator(mixed_precision: str | None, device: str | None) -> Any:
    """The Accelerator of a run; with device "cpu" it keeps off accelerators.

    Raises:
        MissingPackageError: accelerate is not installed. TrainingError: it refuses the precision.
    """
    accelerate = need("accelerate", "trainer", "lfpgraph.Trainer")
    try:
        made = accelerate.Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")
    except ValueError as error:
        raise TrainingError(
            f"accelerate refuses mixed_precision={mixed_precision!r}, device={device!r}: {error}"
        ) from error
    if device not in (None, "cpu", made.device.type, str(made.device)):
        raise TrainingError(f'device={device!r} is not known: accelerate takes {made.device} here; give "cpu" or None')
    return made


def make_optimizer(given: Any, model: nn.Module, lr: float) -> Optimizer:
    """An optimizer as it is; a class of torch.optim by its name; or what a function of the parameters returns.

    Raises:
        TrainingError: no such optimizer, or one that needs a closure. InputError: nothing to train.
    """
    if isinstance(given, Optimizer):
        return given
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameter that requires a gradient.")
    if callable(given):
        with _refused("optimizer", given):
            found = given(parameters)
    else:
        kind = vars(torch.optim).get(given)
        if not isinstance(kind, type) or not issubclass(kind, Optimizer) or given in ("Optimizer", "LBFGS"):
            names = [n for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, Optimizer)]
            known = ", ".join(sorted(set(names) - {"Optimizer", "LBFGS"}))
            raise TrainingError(f"torch.optim has no optimizer {given!r} that the Trainer can use; known: {known}")
        with _refused("optimizer", given):
            found = kind(parameters, lr=lr)  # type: ignore[call-arg]
    if not isinstance(found, Optimizer):
        raise TrainingError(f"optimizer= returned {type(found).__name__}, not a torch optimizer")
    return found


def make_scheduler(given: Any, optimizer: Optimizer, steps: int | None) -> Any:
    """A scheduler as it is, by name, or what a function of (optimizer, steps of the whole run) returns; None for none.

    Raises:
        TrainingError: an unknown name, or a length that is not known and is needed.
    """
    if given is None or hasattr(given, "step"):
        return given
    if isinstance(given, str) and given not in _SCHEDULES:
        raise TrainingError(
            f"no scheduler {given!r}; known: {', '.join(_SCHEDULES)}, or a function of (optimizer, steps)"
        )
    if steps is None:
        raise TrainingError(
            "the data has no length, so the scheduler does not know the number of steps: give max_steps="
        )
    with _refused("scheduler", given):
        return _SCHEDULES[given](optimizer, steps) if isinstance(given, str) else given(optimizer, steps)


@contextmanager
def _refused(name: str, given: Any) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise TrainingError(f"{name}={given!r} cannot be made: {type(error).__name__}: {one_line(error)}") from error


def waits_for_metric(scheduler: Any) -> bool:
    """Whether a scheduler moves by the figure of an evaluation rather than at every step."""
    return isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
