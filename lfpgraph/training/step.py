"""One step of the optimizer: forward, backward, clip, step, on one or several batches and processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..composites.composite import get_composite
from ..errors import DataError, LfpGraphError, NonFiniteError, one_line
from ..optional import need
from ..randomness import random_state, set_random_state
from .diagnose import bad_inputs, first_non_finite
from .objective import Objective, silence
from .resuming.asked import Asked
from .settings import Update

__all__ = ["Stepper"]


class Stepper:
    """Takes steps. The model is put behind DistributedDataParallel where there are several processes.

    Each batch's loss is a mean over its rows and counts by their number, so that a step over several batches, or shared by
    several processes, is the step over all their rows.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        update: Update,
    ) -> None:
        self.accelerator, self.model, self.objective = accelerator, model, objective
        self.clip, self.check = update.clip, update.check_finite
        forward = model.__dict__.get("forward")
        self.parallel = accelerator.prepare_model(model)
        # Casts are traced with the model, inside `accelerator.autocast`: no second wrapper around forward.
        model.__dict__.pop("_original_forward", None)
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.__dict__["forward"] = forward
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.send = need("accelerate.utils", "trainer", "lfpgraph.Trainer").send_to_device

    def run(
        self, group: Sequence[tuple[Any, int]], where: str, asked: Asked, kept: Callable[[], str]
    ) -> tuple[float, float | None, float]:
        """Take a step on batches, each with the number of its rows that count.

        Args:
            where: the step, for messages. asked: a signal to one process becomes one to all. kept: what is left if it fails.

        Returns:
            The loss, the norm of the gradient before clipping (None if nobody asked for it), and the seconds it took.

        Raises:
            NonFiniteError: before the optimizer's step. DataError: a batch that model or loss cannot take.
        """
        start = time.perf_counter()
        world = self.accelerator.num_processes
        rows = self._sum([float(sum(count for _, count in group))])[0]
        self.optimizer.zero_grad()
        value = 0.0
        failed = None
        for i, (batch, count) in enumerate(group):
            try:
                batch = self.send(batch, self.accelerator.device)
            except NotImplementedError as error:  # tensors without values (meta)
                raise DataError(f"{where}: the batch cannot be moved to {self.accelerator.device}: {error}") from error
            wait = world > 1 and i + 1 < len(group)
            random = random_state()
            with self.accelerator.no_sync(self.parallel) if wait else contextlib.nullcontext():
                try:
                    with self.accelerator.autocast():
                        loss, _, _ = self.objective(self.parallel, batch)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from error
                share = count * world / rows
                self.accelerator.backward(loss * share)
            own = loss.item() * share / world
            value += own
            if failed is None and not math.isfinite(loss.item()):
                failed = batch, random
        norm = self._norm()
        value, stop, bad = self._sum([value, float(asked.signal), float(failed is not None)])
        asked.signal = int(stop)
        lost = norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None
        if self.check and (bad or not math.isfinite(value) or lost):
            what = "the loss" if bad or not math.isfinite(value) else "the gradient"
            elsewhere = bool(bad) and failed is None
            origin = "it appeared on another process" if elsewhere else self._origin(*(failed or (batch, random)))
            self.optimizer.zero_grad()
            raise NonFiniteError(f"{where}: {what} is NaN or infinite: {origin}. The step was not taken; {kept()}.")
        self.optimizer.step()
        return value, norm, time.perf_counter() - start

    def _sum(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        given = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(given, reduction="sum").tolist()

    def _norm(self) -> float | None:
        if self.clip is not None:
            return float(self.accelerator.clip_grad_norm_(self.parameters, self.clip))
        if not self.check:
            return None
        self.accelerator.unscale_gradients()
        return float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def _origin(self, batch: Any, random: dict[str, Any]) -> str:
        """What made NaN or infinity, as far as it can be found."""
        if self.objective.step is not None:
            return "lfpgraph cannot follow a step of your own to the operation that made it"
        args, kwargs, labels = self.objective.parts(batch)
        given = bad_inputs(args, kwargs, labels)
        if given is not None:
            return given
        forward = self.model.__dict__.get("forward")
        composite = getattr(forward, "composite", None) or get_composite("gradient")
        set_random_state(random)
        try:
            with self.accelerator.autocast():
                return first_non_finite(
                    self.model,
                    args,
                    kwargs,
                    composite,
                    lambda result: self.objective.of_result(result, labels, 1, silence(self.model)),
                )
        except (LfpGraphError, RuntimeError) as error:
            return f"the operation could not be found ({one_line(error)})"
