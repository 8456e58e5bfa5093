"""Where a run stands; how that is put into a checkpoint, and taken up from one; what ends it early, and how it ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import CheckpointError, TrainingError
from ..optional import need
from ..randomness import random_state
from .checkpoint import find_checkpoint, latest, load_weights, prune, read_state, step_name, write_checkpoint
from .data import Batches

__all__ = ["Asked", "Best", "Outcome", "Position", "Run", "until_asked"]


class Asked:
    """Whether somebody has asked the run to stop: the signal's number, 0 for nobody."""

    signal = 0


@contextmanager
def until_asked(asked: Asked) -> Iterator[None]:
    """Note the first Ctrl-C or SIGTERM in `asked`; the second Ctrl-C interrupts at once. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if asked.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.signal = number

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        epoch_state: the random states at the start of the epoch, as `Batches.start` returned them.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    batches: Batches
    best: Best
    folder: Path | None
    position: Position = field(default_factory=Position)
    epoch_state: Any = None

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.folder is None else self.folder / "checkpoints"

    def save(self, keep: int) -> Path:
        """Write a checkpoint and remove old ones beyond `keep`; all processes must call it.

        Raises:
            CheckpointError: there is no folder, or it cannot be written.
        """
        if self.checkpoints is None:
            raise CheckpointError("there is no folder for checkpoints: give the Trainer folder=")
        at, scaler = self.position, self.accelerator.scaler
        epoch = self.epoch_state if at.batch else self.batches.state()
        gather = need("accelerate.utils", "trainer", "lfpgraph.Trainer").gather_object
        each = gather([{"random": random_state(), "epoch": epoch}])
        path = self.checkpoints / step_name(at.step)
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "optimizer_name": type(self.optimizer).__name__,
                "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "position": asdict(at),
                "best": asdict(self.best),
                "each": each,
            }
            note = {"step": at.step, "epoch": at.epoch, "batch": at.batch, "best": asdict(self.best)}
            note["last"] = at.history[-1] if at.history else None
            write_checkpoint(path, self.model, state, note)
            prune(self.checkpoints, keep, path.with_name(step_name(self.best.step)))
        self.accelerator.wait_for_everyone()
        return path

    def begin(self, resume: bool | str | os.PathLike[str], seed: int) -> Any:
        """Go to the start of a new run, or to a checkpoint.

        Args:
            resume: as for `Trainer.train`. seed: of all random generators, for a new run.

        Returns:
            The states of the random generators at the checkpoint; None for a new run.

        Raises:
            TrainingError: a new run in a folder that holds another. CheckpointError: no checkpoint, or of something else.
        """
        if resume == "auto":
            resume = latest(self.checkpoints) is not None
        found = None
        if resume:
            source = self.folder if resume is True else resume
            if source is None:
                raise CheckpointError("resume=True needs the folder that holds the checkpoints")
            found = self._restore(find_checkpoint(source))  # type: ignore[arg-type]
        elif latest(self.checkpoints) is not None:
            raise TrainingError(
                f"{self.folder} holds the checkpoints of a run: go on with train(resume=True), or give another folder"
            )
        else:
            need("accelerate.utils", "trainer", "lfpgraph.Trainer").set_seed(seed, device_specific=True)
        self.accelerator.wait_for_everyone()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        return found

    def _restore(self, checkpoint: Path) -> Any:
        state = read_state(checkpoint)
        name, before = type(self.optimizer).__name__, state["optimizer_name"]
        if before != name or (state["scheduler"] is None) != (self.scheduler is None):
            raise CheckpointError(f"{checkpoint} was made with {before}, or another scheduler, not {name}")
        load_weights(self.model, checkpoint)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{checkpoint}: the optimizer's state does not fit: {error}") from error
        for holder, key in ((self.scheduler, "scheduler"), (self.accelerator.scaler, "scaler")):
            if holder is not None and state[key] is not None:
                holder.load_state_dict(state[key])
        self.position, self.best = Position(**state["position"]), Best(**state["best"])
        own = state["each"][self.accelerator.process_index % len(state["each"])]
        self.epoch_state = own["epoch"]
        return own["random"]
