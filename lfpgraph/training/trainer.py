"""`lfpgraph.Trainer`: any module, any data, any loss or reward, on accelerate."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError, NonFiniteError, TrainingError, TrainingInterrupted
from ..optional import need
from ..randomness import set_random_state
from ..wrapping.wrapper import is_wrapped, wrap
from .checkpoint import kept, latest, load_weights, step_name
from .data import Batches
from .evaluation import evaluate, named_metrics
from .logs import Bar, make_loggers, refuse_other_files
from .objective import Objective
from .resuming.asked import Asked, until_asked
from .saving import Best, Outcome, Run
from .settings import Evaluation, Feedback, Loading, Running, Saving, Settings, Update
from .setup import make_accelerator, make_optimizer, make_scheduler, waits_for_metric
from .step import Stepper

__all__ = ["Outcome", "Trainer"]


class Trainer:
    """Train a model by feedback.

    Runs in one process, or in as many as `torchrun` or `accelerate launch` start. Settings come in groups, or one by one:
    `Trainer(model, data, lr=1e-2)` is `Trainer(model, data, update=Update(lr=1e-2))`, and a setting beside its own group
    replaces the group's. What is in no group belongs to the objects given: optimizer, scheduler, DataLoader, composite.

    Args:
        model: any module. It is wrapped with `composite` unless it is wrapped already.
        train_data, eval_data: a Dataset, a DataLoader, or a pair of tensors (inputs, labels). Batches are (inputs, ...,
            labels) or mappings.
        objective: what a batch is trained on: `loss`, `reward`, `step`, `labels`.
        feedback: how the model turns it into feedback: `composite`, `wrap_options`, `policies`.
        loading: how a dataset becomes batches: `batch_size`, `workers`, `collate`.
        update: a step: `optimizer`, `lr`, `scheduler`, `accumulate`, `clip`, `check_finite`.
        running: how long, and on what: `epochs`, `max_steps`, `seed`, `mixed_precision`, `device`.
        evaluation: `metrics`, `eval_every`, `monitor`, `greater`, `patience`, `margin`, `load_best`.
        saving: checkpoints and logs: `folder`, `save_every`, `keep`, `loggers`, `progress`.
        single: settings of any group, by name; the groups' classes, in `lfpgraph.training`, say what each is.

    Raises:
        MissingPackageError: accelerate or safetensors is not installed. TrainingError: arguments that do not go together.
        DataError: data that is empty or of no known kind. InputError: nothing to train. TypeError: an unknown argument.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: Any,
        eval_data: Any = None,
        *,
        objective: Objective | None = None,
        feedback: Feedback | None = None,
        loading: Loading | None = None,
        update: Update | None = None,
        running: Running | None = None,
        evaluation: Evaluation | None = None,
        saving: Saving | None = None,
        **single: Any,
    ) -> None:
        for package in ("accelerate", "safetensors"):
            need(package, "trainer", "lfpgraph.Trainer")
        self.settings = Settings.of(
            single, objective=objective, feedback=feedback, loading=loading, update=update, running=running,
            evaluation=evaluation, saving=saving,
        )  # fmt: skip
        feedback, update, running = self.settings.feedback, self.settings.update, self.settings.running
        evaluation, folder = self.settings.evaluation, self.settings.saving.folder
        if eval_data is None and evaluation.chooses:
            raise TrainingError("patience, load_best and monitor need eval_data")
        if evaluation.load_best and folder is None:
            raise TrainingError("load_best needs a folder, where the best checkpoint is kept")
        self.accelerator = make_accelerator(running.mixed_precision, running.device)
        batches = self._batches(train_data, "train_data", self.settings.loading, shuffle=True)
        self.eval_batches = None if eval_data is None else self._batches(eval_data, "eval_data", self.settings.loading)
        self.metrics = named_metrics(evaluation.metrics)
        if not isinstance(model, nn.Module) or any(p.is_meta for p in model.parameters()):
            what = "one without values (meta)" if isinstance(model, nn.Module) else repr(model)
            raise TrainingError(f"the model must be an nn.Module with weights, not {what}")
        self.model = model
        if feedback.composite is not None and not is_wrapped(model):
            wrap(model, feedback.composite, **(feedback.wrap_options or {}))
        model.to(self.accelerator.device)
        self.optimizer = make_optimizer(update.optimizer, model, update.lr)
        steps = None if batches.count is None else running.epochs * -(-batches.count // update.accumulate)
        self.total_steps = min((n for n in (steps, running.max_steps) if n is not None), default=None)
        self.scheduler = make_scheduler(update.scheduler, self.optimizer, self.total_steps)
        for policy in feedback.policies:
            policy.attach(self.optimizer, model)
        self.stepper = Stepper(self.accelerator, model, self.optimizer, self.settings.objective, update)
        self.run = Run(
            self.accelerator, model, self.optimizer, self.scheduler, batches,
            Best(evaluation.monitor, evaluation.greater, evaluation.margin), None if folder is None else Path(folder).absolute(),
            running.seed, update.accumulate,
        )  # fmt: skip
        self.asked = Asked()
        self.takers: list[Any] = []

    def _batches(self, data: Any, name: str, loading: Loading, shuffle: bool = False) -> Batches:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed = self.settings.running.seed
        return Batches(data, name, shuffle=shuffle, seed=seed, rank=rank, world=world, **vars(loading))

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return self.run.checkpoints

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all evaluations."""
        return self.run.position.history

    def train(self, resume: bool | str | os.PathLike[str] = False) -> Outcome:
        """Train to the end.

        Args:
            resume: True goes on from the newest checkpoint in `folder`; "auto" does so if there is one; a path goes on from
                that checkpoint. The weights at the end are those of a run that was never interrupted.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the step was ended and a checkpoint written first.
            NonFiniteError: NaN or infinity in loss or gradients; that step was not taken.
            CheckpointError: a checkpoint cannot be written or read, or is one of another model, optimizer, or run: other
                data, batch sizes, seeds or schedules. TrainingError: another run is in the folder.
            DataError: a batch that the model or the loss cannot take.
        """
        start = time.perf_counter()
        with until_asked(self.asked):
            for _ in self.iterate(resume):
                pass
        stopped = self._out_of_patience()
        best, at = self.run.best, self.run.position
        reason = f"no better {best.name} in {best.waited} evaluations" if stopped else "finished"
        if self.settings.evaluation.load_best and best.step and self.checkpoints is not None:
            load_weights(self.model, self.checkpoints / step_name(best.step))
        last = {k: v for k, v in (self.history[-1] if self.history else {}).items() if k not in ("step", "epoch")}
        seconds = time.perf_counter() - start
        return Outcome(at.step, at.epoch, seconds, reason, last, best.value, best.step, latest(self.checkpoints))

    def iterate(self, resume: bool | str | os.PathLike[str] = False) -> Iterator[dict[str, Any]]:
        """Train, and hand out the record of every step: `step`, `epoch`, `loss`, `lr`, `grad_norm`, `seconds`.

        For loops of your own around it; evaluations and checkpoints happen as in `train`.
        """
        run, saving, main = self.run, self.settings.saving, self.accelerator.is_main_process
        with run.alone():
            if main and resume and (resume != "auto" or latest(self.checkpoints)):
                with self._told_of_logs():
                    refuse_other_files(saving.loggers, run.folder)
            resumed = run.begin(resume, self.total_steps, self.settings.running.epochs)
            self.takers = []
            try:
                if main:
                    with self._told_of_logs():
                        self.takers += make_loggers(saving.loggers, run.folder, run.position.step if resumed else None)
                self.takers.append(Bar(saving.progress and main, self.total_steps, type(self.model).__name__))
                yield from self._steps(resumed)
            finally:
                for taker in self.takers:
                    taker.close()

    def _steps(self, resumed: Any) -> Iterator[dict[str, Any]]:
        """Steps, evaluations and checkpoints from where the run stands; `resumed`: the states of the generators there."""
        run, saving, eval_every = self.run, self.settings.saving, self.settings.evaluation.eval_every
        at = run.position
        while not self._finished():
            known = run.epoch_state if resumed else None
            batches, run.epoch_state = run.batches.start(at.epoch, at.batch, known)
            if resumed and at.batch:
                set_random_state(resumed)
            resumed = None
            self.model.train()
            while group := list(itertools.islice(batches, self.settings.update.accumulate)):
                record = self._step(group)
                self._tell(record)
                if isinstance(eval_every, int) and at.step % eval_every == 0:
                    self._evaluate()
                if isinstance(saving.save_every, int) and at.step % saving.save_every == 0 and run.folder:
                    self.save()
                yield record
                if self.asked.signal:
                    self._stop_as_asked()
                if self._finished() and at.batch != run.batches.count:
                    break
            else:
                self._end_epoch()
        if not self.history or self.history[-1]["step"] != at.step:
            self._evaluate()
        newest = latest(self.checkpoints)
        if run.folder is not None and (newest is None or newest.name != step_name(at.step)):
            self.save()

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Loss and metrics on the evaluation data, or on a Dataset, DataLoader or pair of tensors given here.

        Returns:
            "eval_loss" and "eval_NAME" for every metric.

        Raises:
            TrainingError: there is no data.
        """
        batches = self.eval_batches
        if data is not None:
            batches = self._batches(data, "the evaluation data", Loading(batch_size=256))
        if batches is None:
            raise TrainingError("there is nothing to evaluate on: give the Trainer eval_data, or evaluate() its data")
        return evaluate(self.accelerator, self.model, batches, self.settings.objective, self.metrics)

    def save(self) -> Path:
        """Write a checkpoint of this moment; old ones beyond `keep` go.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before are as they were. NonFiniteError: the last step has
                made weights NaN or infinite, and `check_finite` is on; they take no good checkpoint's place.
        """
        if self.settings.update.check_finite:
            bad = [name for name, p in self.model.named_parameters() if p.requires_grad and not p.isfinite().all()]
            if bad:
                raise NonFiniteError(
                    f"step {self.run.position.step} has made {bad[0]} NaN or infinite, of a gradient that was finite (the "
                    f"rate? the optimizer's epsilon?). It is not written; {kept(self.checkpoints)}."
                )
        return self.run.save(self.settings.saving.keep)

    def _finished(self) -> bool:
        at = self.run.position
        done = self.total_steps is not None and at.step >= self.total_steps
        return done or at.epoch >= self.settings.running.epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.settings.evaluation.patience
        return patience is not None and self.run.best.waited >= patience

    def _step(self, group: list[tuple[Any, int]]) -> dict[str, Any]:
        at = self.run.position
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
            with self._told_of_logs():
                taker.write(record)

    @contextmanager
    def _told_of_logs(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write the log: {error.strerror}; {kept(self.checkpoints)}") from error

    def _evaluate(self) -> None:
        if self.eval_batches is None:
            return
        found = self.evaluate()
        best, at = self.run.best, self.run.position
        record = {"step": at.step, "epoch": at.epoch + 1, **found}
        if best.name not in found:
            raise TrainingError(f"monitor={best.name!r} is not among the figures: {', '.join(found)}")
        self.history.append(record)
        better = best.see(found[best.name], at.step)
        if self.scheduler is not None and waits_for_metric(self.scheduler):
            self.scheduler.step(found[best.name])
        self._tell(record)
        if better and self.settings.evaluation.load_best:
            self.save()

    def _end_epoch(self) -> None:
        if self.settings.evaluation.eval_every == "epoch":
            self._evaluate()
        self.run.position.epoch += 1
        self.run.position.batch = 0
        if self.settings.saving.save_every == "epoch" and self.run.folder is not None:
            self.save()

    def _stop_as_asked(self) -> None:
        name = "Ctrl-C" if self.asked.signal == signal.SIGINT else "a signal"
        self.asked.signal = 0
        saved = f"; {self.save()} holds it: go on with train(resume=True)" if self.run.folder is not None else ""
        raise TrainingInterrupted(f"stopped by {name} after step {self.run.position.step}{saved}")
