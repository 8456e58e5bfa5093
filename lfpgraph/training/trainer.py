"""`lfpgraph.Trainer`: any module, any data, any loss or reward, on accelerate."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..composites.composite import Composite
from ..errors import CheckpointError, TrainingError, TrainingInterrupted
from ..optional import need
from ..randomness import set_random_state
from ..wrapping.wrapper import is_wrapped, wrap
from .checkpoint import kept, latest, load_weights, step_name
from .data import Batches
from .evaluation import Metric, evaluate, named_metrics
from .logs import Bar, Logger, make_loggers
from .objective import Objective
from .saving import Position, begin, save
from .setup import (
    check_counts,
    check_rhythms,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    waits_for_metric,
)
from .step import Stepper
from .stops import Asked, Best, Outcome, until_asked

__all__ = ["Outcome", "Trainer"]


class Trainer:
    """Train a model by feedback.

    Runs in one process, or in as many as `torchrun` or `accelerate launch` start. Every setting that is not here belongs to
    the objects given: optimizer, scheduler, DataLoader, composite.

    Args:
        model: any module. It is wrapped with `composite` unless it is wrapped already.
        train_data, eval_data: a Dataset, a DataLoader, or a pair of tensors (inputs, labels). Batches are (inputs, ...,
            labels) or mappings.
        loss: a function of (outputs, labels), the mean over the batch; outputs are `.logits` where the model has them.
        reward: instead of a loss: a function of (outputs, labels) that returns the reward of each output, such as those of
            `lfpgraph.rewards`. The batch's mean is maximised. With neither, the model's own `.loss` is used.
        step: instead of both: a function of (model, batch) that returns the loss, for batches of any other form.
        optimizer: an optimizer, a function of the parameters, or the name of a class of torch.optim, used with `lr`.
        scheduler: a scheduler, a function of (optimizer, steps), or "constant", "cosine", "linear", "onecycle". It moves at
            every step; ReduceLROnPlateau at every evaluation.
        epochs, max_steps: the run ends at whichever comes first.
        batch_size: rows of a batch, which the processes share; `accumulate` batches make one step of the optimizer. Not
            used where a DataLoader is given.
        clip: largest norm of all gradients together; None for none.
        composite: rules of `wrap`; None leaves the model as it is (backprop, if nobody has wrapped it).
        wrap_options: further arguments of `wrap`.
        policies: of `lfpgraph.training.policies`, applied in order between backward and step.
        metrics: names or {name: function of all outputs and all labels}, on the evaluation data.
        monitor, greater, patience, margin: the figure that says what is best ("eval_loss"); whether more of it is better
            (not, where the name holds "loss" or "error"); the run stops after so many evaluations without an improvement
            by more than `margin`.
        load_best: at the end, put back the weights that were best.
        folder: for checkpoints and logs; None for neither.
        eval_every, save_every: in steps, or "epoch". keep: how many checkpoints stay, besides the best one.
        loggers: "jsonl", "csv", "tensorboard", or objects with `write(record)` and `close()`.
        progress: True, False, or "auto": on a terminal.
        seed: of the order of the data, and of all random generators at the start.
        mixed_precision: "no", "bf16", "fp16"; None takes what `accelerate launch` says.
        device: "cpu" keeps off accelerators; None takes what there is.
        check_finite: stop at NaN or infinity in loss or gradients, naming the operation.
        labels: key of the labels in batches that are mappings.
        workers, collate: of the DataLoader that is made for a dataset.

    Raises:
        MissingPackageError: accelerate or safetensors is not installed. TrainingError: arguments that do not go together.
        DataError: data that is empty or of no known kind. InputError: nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: Any,
        eval_data: Any = None,
        *,
        loss: Callable[..., Tensor] | None = None,
        reward: Callable[..., Tensor] | None = None,
        step: Callable[[nn.Module, Any], Tensor] | None = None,
        optimizer: Any = "AdamW",
        lr: float = 1e-3,
        scheduler: Any = None,
        epochs: int = 1,
        max_steps: int | None = None,
        batch_size: int = 32,
        accumulate: int = 1,
        clip: float | None = 1.0,
        composite: str | Composite | None = "lfp-epsilon",
        wrap_options: Mapping[str, Any] | None = None,
        policies: Sequence[Any] = (),
        metrics: Sequence[str] | Mapping[str, Metric] = (),
        monitor: str = "eval_loss",
        greater: bool | None = None,
        patience: int | None = None,
        margin: float = 0.0,
        load_best: bool = False,
        folder: str | os.PathLike[str] | None = None,
        eval_every: int | str = "epoch",
        save_every: int | str = "epoch",
        keep: int = 2,
        loggers: Sequence[str | Logger] = ("jsonl", "csv"),
        progress: bool | str = "auto",
        seed: int = 0,
        mixed_precision: str | None = None,
        device: str | None = None,
        check_finite: bool = True,
        labels: str = "labels",
        workers: int = 0,
        collate: Callable[..., Any] | None = None,
    ) -> None:
        for package in ("accelerate", "safetensors"):
            need(package, "trainer", "lfpgraph.Trainer")
        check_counts(epochs=epochs, batch_size=batch_size, accumulate=accumulate, keep=keep)
        check_rhythms(eval_every=eval_every, save_every=save_every)
        if (patience is not None or load_best) and eval_data is None:
            raise TrainingError("patience and load_best need eval_data")
        if load_best and folder is None:
            raise TrainingError("load_best needs a folder, where the best checkpoint is kept")
        self.accelerator = make_accelerator(mixed_precision, device)
        common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "workers": workers, "collate": collate}
        self.batches = self._batches(train_data, "train_data", shuffle=True, **common)
        self.eval_batches = (
            None if eval_data is None else self._batches(eval_data, "eval_data", shuffle=False, **common)
        )
        self.objective = Objective(loss, reward, step, labels)
        self.metrics = named_metrics(metrics)
        self.model = model
        if composite is not None and not is_wrapped(model):
            wrap(model, composite, **(wrap_options or {}))
        model.to(self.accelerator.device)
        self.optimizer = make_optimizer(optimizer, model, lr)
        self.epochs, self.accumulate, self.seed = epochs, accumulate, seed
        steps = None if self.batches.count is None else epochs * -(-self.batches.count // accumulate)
        self.total_steps = min((n for n in (steps, max_steps) if n is not None), default=None)
        self.scheduler = make_scheduler(scheduler, self.optimizer, self.total_steps)
        for policy in policies:
            policy.attach(self.optimizer, model)
        self.stepper = Stepper(self.accelerator, model, self.optimizer, self.objective, clip, check_finite)
        self.best = Best(monitor, greater, margin)
        self.patience, self.load_best = patience, load_best
        self.folder = None if folder is None else Path(folder)
        self.eval_every, self.save_every, self.keep = eval_every, save_every, keep
        self.logger_names, self.progress = loggers, progress
        self.position = Position()
        self.asked = Asked()
        self.epoch_state: Any = None
        self.takers: list[Any] = []

    def _batches(self, data: Any, name: str, **options: Any) -> Batches:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return Batches(data, name, rank=rank, world=world, **options)

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.folder is None else self.folder / "checkpoints"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all evaluations."""
        return self.position.history

    def train(self, resume: bool | str | os.PathLike[str] = False) -> Outcome:
        """Train to the end.

        Args:
            resume: True goes on from the newest checkpoint in `folder`; "auto" does so if there is one; a path goes on from
                that checkpoint. The weights at the end are those of a run that was never interrupted.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the step was ended and a checkpoint written first.
            NonFiniteError: NaN or infinity in loss or gradients; that step was not taken.
            CheckpointError: a checkpoint cannot be written or read, or belongs to another model.
            DataError: a batch that the model or the loss cannot take.
        """
        start = time.perf_counter()
        with until_asked(self.asked):
            for _ in self.iterate(resume):
                pass
        stopped = self._out_of_patience()
        reason = f"no better {self.best.name} in {self.best.waited} evaluations" if stopped else "finished"
        if self.load_best and self.best.step and self.checkpoints is not None:
            load_weights(self.model, self.checkpoints / step_name(self.best.step))
        last = {k: v for k, v in (self.history[-1] if self.history else {}).items() if k not in ("step", "epoch")}
        at = self.position
        return Outcome(
            at.step, at.epoch, time.perf_counter() - start, reason, last, self.best.value, self.best.step,
            latest(self.checkpoints),
        )  # fmt: skip

    def iterate(self, resume: bool | str | os.PathLike[str] = False) -> Iterator[dict[str, Any]]:
        """Train, and hand out the record of every step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `seconds`.

        For loops of your own around it; evaluations and checkpoints happen as in `train`.
        """
        resumed = begin(self, resume)
        main = self.accelerator.is_main_process
        after = self.position.step if resumed else None
        self.takers = make_loggers(self.logger_names, self.folder, after) if main else []
        self.takers.append(Bar(self.progress and main, self.total_steps, type(self.model).__name__))
        try:
            while not self._finished():
                at, known = self.position, self.epoch_state if resumed else None
                batches, self.epoch_state = self.batches.start(at.epoch, at.batch, known)
                if resumed and at.batch:
                    set_random_state(resumed)
                resumed = None
                self.model.train()
                while group := list(itertools.islice(batches, self.accumulate)):
                    record = self._step(group)
                    self._tell(record)
                    if isinstance(self.eval_every, int) and at.step % self.eval_every == 0:
                        self._evaluate()
                    if isinstance(self.save_every, int) and at.step % self.save_every == 0 and self.folder:
                        self.save()
                    yield record
                    if self.asked.signal:
                        self._stop_as_asked()
                    if self._finished() and at.batch != self.batches.count:
                        break
                else:
                    self._end_epoch()
            if not self.history or self.history[-1]["step"] != self.position.step:
                self._evaluate()
            newest = latest(self.checkpoints)
            if self.folder is not None and (newest is None or newest.name != step_name(self.position.step)):
                self.save()
        finally:
            for taker in self.takers:
                taker.close()

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Loss and metrics on the evaluation data, or on a Dataset, DataLoader or pair of tensors given here.

        Returns:
            "eval_loss" and "eval_NAME" for every metric.

        Raises:
            TrainingError: there is no data.
        """
        batches = self.eval_batches
        if data is not None:
            batches = self._batches(
                data, "the evaluation data", batch_size=256, shuffle=False, seed=0, workers=0, collate=None
            )
        if batches is None:
            raise TrainingError("there is nothing to evaluate on: give the Trainer eval_data, or evaluate() its data")
        return evaluate(self.accelerator, self.model, batches, self.objective, self.metrics)

    def save(self) -> Path:
        """Write a checkpoint of this moment; old ones beyond `keep` go.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before are as they were.
        """
        return save(self)

    def _finished(self) -> bool:
        at = self.position
        done = self.total_steps is not None and at.step >= self.total_steps
        return done or at.epoch >= self.epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.best.waited >= self.patience

    def _step(self, group: list[tuple[Any, int]]) -> dict[str, Any]:
        at = self.position
        rate = self.optimizer.param_groups[0]["lr"]
        where = f"step {at.step + 1} (epoch {at.epoch + 1}, batch {at.batch + 1})"
        loss, norm, seconds = self.stepper.run(group, where, self.asked, lambda: kept(self.checkpoints))
        if self.scheduler is not None and not waits_for_metric(self.scheduler):
            self.scheduler.step()
        at.step += 1
        at.batch += len(group)
        record = {"step": at.step, "epoch": at.epoch + 1, "loss": loss, "lr": float(rate)}
        return record | ({} if norm is None else {"grad_norm": norm}) | {"seconds": seconds}

    def _tell(self, record: dict[str, Any]) -> None:
        for taker in self.takers:
            try:
                taker.write(record)
            except OSError as error:
                raise CheckpointError(f"cannot write the log: {error.strerror}; {kept(self.checkpoints)}") from error

    def _evaluate(self) -> None:
        if self.eval_batches is None:
            return
        found = self.evaluate()
        record = {"step": self.position.step, "epoch": self.position.epoch + 1, **found}
        if self.best.name not in found:
            raise TrainingError(f"monitor={self.best.name!r} is not among the figures: {', '.join(found)}")
        self.history.append(record)
        better = self.best.see(found[self.best.name], self.position.step)
        if self.scheduler is not None and waits_for_metric(self.scheduler):
            self.scheduler.step(found[self.best.name])
        self._tell(record)
        if better and self.load_best:
            self.save()

    def _end_epoch(self) -> None:
        if self.eval_every == "epoch":
            self._evaluate()
        self.position.epoch += 1
        self.position.batch = 0
        if self.save_every == "epoch" and self.folder is not None:
            self.save()

    def _stop_as_asked(self) -> None:
        name = "Ctrl-C" if self.asked.signal == signal.SIGINT else "a signal"
        self.asked.signal = 0
        saved = f"; {self.save()} holds it: go on with train(resume=True)" if self.folder is not None else ""
        raise TrainingInterrupted(f"stopped by {name} after step {self.position.step}{saved}")
