"""Where a run stands; how that is put into a checkpoint, and taken up from one; and how a run ended."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import CheckpointError, TrainingError, one_line
from ..optional import need
from ..randomness import random_state
from .checkpoint import (
    checked_weights,
    find_checkpoint,
    later_than,
    latest,
    prune,
    read_state,
    settle,
    step_name,
    write_checkpoint,
)
from .data import Batches
from .resuming.fitting import check_state, names_of
from .resuming.lock import locked

__all__ = ["Best", "Outcome", "Position", "Run"]

log = logging.getLogger("lfpgraph")


@dataclass
class Best:
    """The best value of a figure so far, and for how many evaluations there was no better one.

    Attributes:
        name: the figure. greater: whether more is better; a name with "loss" or "error" says no.
        margin: by how much a value must be better to count.
    """

    name: str
    greater: bool | None = None
    margin: float = 0.0
    value: float | None = None
    step: int = 0
    waited: int = 0

    def __post_init__(self) -> None:
        if self.greater is None:
            self.greater = not any(word in self.name for word in ("loss", "error", "perplexity"))

    def see(self, value: float, step: int) -> bool:
        """Take the value of an evaluation; whether it is the best so far."""
        gain = 0.0 if self.value is None else (value - self.value) * (1 if self.greater else -1)
        if self.value is None or gain > self.margin:
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        steps, epochs: done in all, also before a resumption. seconds: of this call.
        reason: "finished", or "no better ..." when it stopped early.
        metrics: of the last evaluation. best, best_step: of the figure that is watched.
        checkpoint: the newest one.
    """

    steps: int
    epochs: int
    seconds: float
    reason: str
    metrics: dict[str, float]
    best: float | None
    best_step: int
    checkpoint: Path | None


@dataclass
class Position:
    """Where a run stands: steps done, the epoch, batches of it that are done, and what evaluations gave."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """What changes while a model is trained, and so belongs in a checkpoint.

    Attributes:
        folder: holds the checkpoints and logs; None for neither.
        seed, accumulate: of the run; they and the data's sizes must be the same when it is taken up again.
        epoch_state: the random states at the start of the epoch, as `Batches.start` returned them.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    batches: Batches
    best: Best
    folder: Path | None
    seed: int = 0
    accumulate: int = 1
    position: Position = field(default_factory=Position)
    epoch_state: Any = None
    _alone: bool = False

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.folder is None else self.folder / "checkpoints"

    @property
    def facts(self) -> dict[str, Any]:
        """What must not change while a run is interrupted."""
        return {**self.batches.facts, "accumulate": self.accumulate, "seed": self.seed}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder; all processes must call it.

        Raises:
            TrainingError: another run is in it.
        """
        if self.folder is None or self._alone:
            yield
            return
        lock = locked(self.folder) if self.accelerator.is_main_process else nullcontext()
        told = ""
        try:
            lock.__enter__()
        except TrainingError as error:
            told = str(error)
        told = next((text for text in self._gathered(told) if text), "")
        if told:
            raise TrainingError(told)
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            lock.__exit__(None, None, None)

    def _gathered(self, value: Any) -> list[Any]:
        """What each process has."""
        return need("accelerate.utils", "trainer", "lfpgraph.Trainer").gather_object([value])

    def save(self, keep: int) -> Path:
        """Write a checkpoint and remove old ones beyond `keep`; all processes must call it.

        Raises:
            CheckpointError: there is no folder, or it cannot be written. TrainingError: another run is in it.
        """
        if self.checkpoints is None:
            raise CheckpointError("there is no folder for checkpoints: give the Trainer folder=")
        with self.alone():
            return self._save(self.checkpoints, keep)

    def _save(self, folder: Path, keep: int) -> Path:
        at, scaler = self.position, self.accelerator.scaler
        epoch = self.epoch_state if at.batch else self.batches.state()
        each = self._gathered({"random": random_state(), "epoch": epoch})
        path = folder / step_name(at.step)
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "optimizer_name": type(self.optimizer).__name__,
                "parameters": names_of(self.optimizer, self.model),
                "facts": self.facts,
                "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "position": asdict(at),
                "best": asdict(self.best),
                "each": each,
            }
            note = {"step": at.step, "epoch": at.epoch, "batch": at.batch, "best": asdict(self.best)}
            note["last"] = at.history[-1] if at.history else None
            write_checkpoint(path, self.model, state, note)
            prune(folder, keep, path.with_name(step_name(self.best.step)))
        self.accelerator.wait_for_everyone()
        return path

    def begin(self, resume: bool | str | os.PathLike[str], steps: int | None, epochs: int) -> Any:
        """Go to the start of a new run, or to a checkpoint; called with the folder to itself.

        Args:
            resume: as for `Trainer.train`. steps, epochs: at which the run ends.

        Returns:
            The states of the random generators at the checkpoint; None for a new run.

        Raises:
            TrainingError: a new run in a folder that holds another. CheckpointError: no checkpoint, or of something else.
        """
        if self.checkpoints is not None and self.accelerator.is_main_process:
            settle(self.checkpoints)
        self.accelerator.wait_for_everyone()
        newest = latest(self.checkpoints)
        if resume == "auto":
            resume = newest is not None
        found = None
        if resume:
            source = self.folder if resume is True else resume
            if source is None:
                raise CheckpointError("resume=True needs the folder that holds the checkpoints")
            checkpoint = find_checkpoint(source)  # type: ignore[arg-type]
            if newest is not None and checkpoint.parent.resolve() != newest.parent.resolve():
                raise TrainingError(
                    f"{self.folder} holds the checkpoints of a run, and {checkpoint} is none of them: give another folder"
                )
            found = self._restore(checkpoint, steps, epochs)
            self.accelerator.wait_for_everyone()
            self._leave_later(checkpoint, newest)
        elif newest is not None:
            raise TrainingError(
                f"{self.folder} holds the checkpoints of a run: go on with train(resume=True), or give another folder"
            )
        else:
            need("accelerate.utils", "trainer", "lfpgraph.Trainer").set_seed(self.seed, device_specific=True)
        self.accelerator.wait_for_everyone()
        return found

    def _leave_later(self, checkpoint: Path, newest: Path | None) -> None:
        """Put aside what the folder holds of another way than the one from this checkpoint on."""
        if newest is None or not self.accelerator.is_main_process:
            return
        for path in later_than(newest.parent / checkpoint.name):
            name, count = f"left-{path.name}", 1
            while (path.parent / name).exists():
                name, count = f"left-{path.name}-{count}", count + 1
            path.rename(path.parent / name)
            log.warning(
                "%s is later than %s, from which this run goes on: it is kept as %s", path, checkpoint.name, name
            )

    def _restore(self, checkpoint: Path, steps: int | None, epochs: int) -> Any:
        """Take up a checkpoint: all of it is read and checked before anything of the run changes."""
        state = read_state(checkpoint)
        weights = checked_weights(self.model, checkpoint)
        scaler = self.accelerator.scaler
        try:
            check_state(state, self.model, self.optimizer, self.scheduler, scaler, self.facts)
            position, best = Position(**state["position"]), Best(**state["best"])
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint} does not fit this run: {error}") from error
        except Exception as error:  # values of any kind, where others belong
            raise CheckpointError(f"{checkpoint} is damaged: {type(error).__name__}: {one_line(error)}") from error
        batches = self.batches.count
        ends = ((position.epoch, epochs), (position.step, steps), (position.batch, batches))
        if any(end is not None and at > end for at, end in ends):
            raise CheckpointError(
                f"{checkpoint} is at step {position.step}, batch {position.batch} of epoch {position.epoch + 1}, beyond the end "
                f"of this run (epochs={epochs}, max_steps={steps}, {batches} batches in an epoch)"
            )
        self._load(checkpoint, state, weights)
        self.position, self.best = position, best
        each, world = state["each"], self.accelerator.num_processes
        if len(each) != world:
            log.warning(
                "%s was written by %d processes, now there are %d: dropout draws anew", checkpoint, len(each), world
            )
        own = each[self.accelerator.process_index % len(each)]
        self.epoch_state = own["epoch"]
        return own["random"]

    def _load(self, checkpoint: Path, state: Any, weights: Any) -> None:
        """Put a state into optimizer, scheduler and scaler, and weights into the model; all of it, or nothing."""
        holders = [(self.scheduler, state["scheduler"]), (self.accelerator.scaler, state["scaler"])]
        used = [(holder, new, copy.deepcopy(holder.state_dict())) for holder, new in holders if holder and new]
        before = {"state": self.optimizer.state, "param_groups": self.optimizer.param_groups}
        for group, theirs in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"]):
            for key in group.keys() - theirs.keys():
                theirs[key] = group[key]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            for holder, new, _ in used:
                holder.load_state_dict(new)
            self.model.load_state_dict(weights, strict=False)
        except Exception as error:  # an optimizer or scheduler of somebody else's may raise anything
            self.optimizer.__setstate__(before)
            for holder, _, old in used:
                holder.load_state_dict(old)
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise CheckpointError(f"{checkpoint}: the optimizer's state does not fit: {reason}") from error
