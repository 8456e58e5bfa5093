"""A run put into a checkpoint, and taken up from one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, TrainingError
from ..optional import need
from ..randomness import random_state
from .checkpoint import (
    find_checkpoint,
    latest,
    load_weights,
    prune,
    read_state,
    step_name,
    write_checkpoint,
)
from .stops import Best

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["Position", "begin", "save"]


@dataclass
class Position:
    """Where a run stands: steps done, the epoch, batches of it that are done, and what evaluations gave."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(run: Trainer) -> Path:
    """Write a checkpoint of a run; all processes must call it.

    Raises:
        CheckpointError: there is no folder, or it cannot be written.
    """
    if run.checkpoints is None:
        raise CheckpointError("there is no folder for checkpoints: give the Trainer folder=")
    at, scaler = run.position, run.accelerator.scaler
    epoch = run.epoch_state if at.batch else run.batches.state()
    gather = need("accelerate.utils", "trainer", "lfpgraph.Trainer").gather_object
    each = gather([{"random": random_state(), "epoch": epoch}])
    path = run.checkpoints / step_name(at.step)
    if run.accelerator.is_main_process:
        state = {
            "optimizer": run.optimizer.state_dict(),
            "optimizer_name": type(run.optimizer).__name__,
            "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "position": asdict(at),
            "best": asdict(run.best),
            "each": each,
        }
        note = {"step": at.step, "epoch": at.epoch, "batch": at.batch, "best": asdict(run.best)}
        note["last"] = at.history[-1] if at.history else None
        write_checkpoint(path, run.model, state, note)
        prune(run.checkpoints, run.keep, path.with_name(step_name(run.best.step)))
    run.accelerator.wait_for_everyone()
    return path


def begin(run: Trainer, resume: bool | str | os.PathLike[str]) -> Any:
    """Set a run to its start, or to a checkpoint.

    Args:
        resume: as for `Trainer.train`.

    Returns:
        The states of the random generators at the checkpoint; None for a new run.

    Raises:
        TrainingError: a new run in a folder that holds another. CheckpointError: no checkpoint, or of something else.
    """
    if resume == "auto":
        resume = latest(run.checkpoints) is not None
    if resume:
        if resume is True and run.folder is None:
            raise CheckpointError("resume=True needs the folder that holds the checkpoints")
        found = _restore(run, find_checkpoint(run.folder if resume is True else resume))  # type: ignore[arg-type]
    else:
        found = None
        if latest(run.checkpoints) is not None:
            raise TrainingError(
                f"{run.folder} holds the checkpoints of a run: go on with train(resume=True), or give another folder"
            )
        need("accelerate.utils", "trainer", "lfpgraph.Trainer").set_seed(run.seed, device_specific=True)
    run.accelerator.wait_for_everyone()
    if run.folder is not None:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make the folder {run.folder}: {error.strerror}") from error
    return found


def _restore(run: Trainer, checkpoint: Path) -> Any:
    state = read_state(checkpoint)
    name = type(run.optimizer).__name__
    if state["optimizer_name"] != name or (state["scheduler"] is None) != (run.scheduler is None):
        raise CheckpointError(f"{checkpoint} was made with {state['optimizer_name']}, or another scheduler, not {name}")
    load_weights(run.model, checkpoint)
    try:
        run.optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: the optimizer's state does not fit: {error}") from error
    for holder, key in ((run.scheduler, "scheduler"), (run.accelerator.scaler, "scaler")):
        if holder is not None and state[key] is not None:
            holder.load_state_dict(state[key])
    run.position = Position(**state["position"])
    run.best = Best(**state["best"])
    own = state["each"][run.accelerator.process_index % len(state["each"])]
    run.epoch_state = own["epoch"]
    return own["random"]
