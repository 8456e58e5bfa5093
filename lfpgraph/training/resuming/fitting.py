"""Whether what a checkpoint holds fits the run that is to go on from it. Nothing is changed here."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import CheckpointError
from ...randomness import random_state, set_random_state

__all__ = ["check_state", "names_of"]

log = logging.getLogger("lfpgraph")
_LENGTHS = ("total_steps", "T_max", "total_iters")  # what a scheduler knows of the length of the run
_NUMBER, _COUNT = (int, float), (int,)
_FORM: dict[str, Any] = {
    "optimizer": {"state": dict, "param_groups": list},
    "optimizer_name": str,
    "scheduler": (dict, type(None)),
    "scaler": (dict, type(None)),
    "position": {"step": _COUNT, "epoch": _COUNT, "batch": _COUNT, "history": list},
    "best": {"name": str, "greater": bool, "margin": _NUMBER, "value": (*_NUMBER, type(None)), "step": _COUNT, "waited": _COUNT},
    "each": list,
}  # fmt: skip


def names_of(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of an optimizer's parameters, group by group; "" for one that is not the model's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]


def check_state(
    state: Any, model: nn.Module, optimizer: Optimizer, scheduler: Any, scaler: Any, facts: Mapping[str, Any]
) -> None:
    """Raise CheckpointError, with what is wrong, if a run cannot go on from a checkpoint's `state`.

    Args:
        facts: of the run, by name: where any differs from those noted in the checkpoint, the run cannot go on.
    """
    _check_form(state, _FORM, "")
    _check_form(state.get("facts", {}), dict, "facts")  # older versions wrote neither these
    _check_form(state.get("parameters", []), list, "parameters")  # nor these
    own, before = type(optimizer).__name__, state["optimizer_name"]
    if before != own or (state["scheduler"] is None) != (scheduler is None):
        raise CheckpointError(f"it was made with {before}, or another scheduler, not {own}")
    for name, value in state.get("facts", {}).items():
        if name in facts and facts[name] != value:
            raise CheckpointError(
                f"it was made with {name}={value!r}, and now there is {name}={facts[name]!r}: its place in the data is no "
                f"place in this run. Give {name}={value!r}; or begin another run, from its weights alone."
            )
    _check_optimizer(state, model, optimizer)
    for what, holder in (("scheduler", scheduler), ("scaler", scaler)):
        if holder is not None and state[what] is not None:
            mine = holder.state_dict()
            for key in _LENGTHS:
                if key in mine and mine[key] != state[what].get(key, mine[key]):
                    raise CheckpointError(
                        f"its schedule is one for {key}={state[what][key]}, and this run's for {mine[key]}: give as many "
                        "epochs and steps as then, or a scheduler of your own making"
                    )
                done = state[what].get("last_epoch")
                if key in mine and not (isinstance(done, int) and 0 <= done <= mine[key]):
                    raise CheckpointError(f"its schedule of {mine[key]} steps is at step {done!r}")
            hidden = [key for key in state[what] if key not in mine and hasattr(holder, str(key))]
            if hidden:  # loading would put a value in place of a method, or of the optimizer
                raise CheckpointError(f"its {what} has a value {hidden[0]!r}, which {type(holder).__name__} has not")
            _check_moved(mine, state[what], what)
    for own_state in state["each"]:
        _check_random(own_state)
    if not state["each"]:
        raise CheckpointError("it holds no state of the random generators")
    for record in state["position"]["history"]:
        _check_form(record, {"step": _COUNT}, "history")


def _check_form(value: Any, form: Any, where: str) -> None:
    if isinstance(form, dict):
        if not isinstance(value, dict) or any(key not in value for key in form):
            raise CheckpointError(f"it has no {where or 'state'} of the form that this version writes")
        for key, part in form.items():
            _check_form(value[key], part, f"{where}.{key}" if where else key)
    elif (
        not isinstance(value, form) or (isinstance(value, bool) and form is not bool) or (form is _COUNT and value < 0)
    ):
        raise CheckpointError(f"its {where} is {str(value)[:80]!r}")


def _check_optimizer(state: Any, model: nn.Module, optimizer: Optimizer) -> None:
    saved, groups = state["optimizer"], optimizer.param_groups
    sizes = [len(g.get("params", ())) if isinstance(g, dict) else -1 for g in saved["param_groups"]]
    if sizes != [len(group["params"]) for group in groups]:
        raise CheckpointError(
            f"its optimizer has groups of {sizes} parameters, not {[len(g['params']) for g in groups]}"
        )
    names = names_of(optimizer, model)
    for mine, theirs in zip(names, state.get("parameters", names)):
        _check_form(theirs, list, "parameters")
        other = next((pair for pair in zip(mine, theirs) if pair[0] != pair[1]), None)
        if other is not None:
            raise CheckpointError(f"its optimizer has {other[1]!r} where this one has {other[0]!r}: another order")
    places: dict[Any, Tensor] = {}
    for group, theirs in zip(groups, saved["param_groups"]):
        places |= dict(zip(theirs["params"], group["params"]))
        shared = {key: value for key, value in theirs.items() if key in group and key != "params"}
        _check_alike(group, shared, "optimizer")
        for key, value in shared.items():
            if (
                isinstance(value, float)
                and isinstance(group[key], float)
                and math.isfinite(group[key]) > math.isfinite(value)
            ):
                raise CheckpointError(f"its optimizer.{key} is {value}")
        lost = [key for key in group if key not in theirs and (key == "lr" or key not in optimizer.defaults)]
        if lost:  # others are of a newer torch, and have their defaults
            raise CheckpointError(f"its optimizer has no {lost[0]!r}, which this one has")
    expected, from_start = _memory_of(optimizer, saved["param_groups"])
    for place in places if from_start else ():
        if place not in saved["state"]:
            raise CheckpointError(f"its optimizer remembers nothing of parameter {place}")
    for place, held in saved["state"].items():
        if place not in places or not isinstance(held, dict):
            raise CheckpointError(f"its optimizer remembers something of a parameter {place!r}, of which there is none")
        for key, value in expected.get(places[place], {}).items():
            where = f"optimizer's {key} of parameter {place}"
            if key not in held or (isinstance(value, Tensor) and not isinstance(held[key], Tensor)):
                raise CheckpointError(f"its {where} is no tensor")
            if isinstance(value, Tensor) and held[key].shape != value.shape:
                raise CheckpointError(f"its {where} is {list(held[key].shape)}, not {list(value.shape)}")
            if isinstance(value, Tensor) and held[key].is_floating_point() != value.is_floating_point():
                raise CheckpointError(f"its {where} is {held[key].dtype}, not {value.dtype}")
            if isinstance(value, Tensor) and (held[key].isnan().any() or (key == "step" and held[key] < 0)):
                raise CheckpointError(f"its {where} is NaN, or a number of steps below zero")
            _check_alike(value, held[key], where)


def _memory_of(optimizer: Optimizer, saved: Sequence[Any]) -> tuple[dict[Tensor, dict[str, Any]], bool]:
    """What an optimizer of torch remembers of each parameter after a step, as tensors of no memory.

    Args:
        saved: its groups, whose hyperparameters it is to have.

    Returns:
        That, and whether it remembers something from the start. Nothing of other optimizers, whose ways are not known.
    """
    if type(optimizer).__module__.partition(".")[0] != "torch":
        return {}, False
    try:
        _trial(optimizer, [{} for _ in saved])
    except Exception as error:  # one that wants a closure, sparse gradients, or values
        log.info("what %s remembers is not checked: %s", type(optimizer).__name__, error)
        return {}, False
    try:
        return _trial(optimizer, [{key: value for key, value in theirs.items() if key != "params"} for theirs in saved])
    except Exception as error:
        raise CheckpointError(f"its optimizer's settings allow no step: {type(error).__name__}: {error}") from error


def _trial(optimizer: Optimizer, settings: Sequence[dict[str, Any]]) -> tuple[dict[Tensor, dict[str, Any]], bool]:
    twins: dict[Tensor, Tensor] = {}
    groups = []
    given = inspect.signature(type(optimizer)).parameters
    for group, changed in zip(optimizer.param_groups, settings):
        made = [nn.Parameter(torch.empty_like(p, device="meta")) for p in group["params"]]
        twins.update(zip(made, group["params"]))
        groups.append({**group, **changed, "params": made, "foreach": False, "fused": False})
        type(optimizer)(**{key: value for key, value in groups[-1].items() if key in given})  # looks at its settings
    trial = type(optimizer)(groups)  # type: ignore[call-arg]
    from_start = bool(trial.state)
    for parameter in twins:
        parameter.grad = torch.empty_like(parameter)
    trial.step()
    return {twins[parameter]: dict(held) for parameter, held in trial.state.items()}, from_start


def _check_alike(own: Any, found: Any, where: str) -> None:
    """Whether a value is of the kind of one's own, at every depth."""
    if isinstance(own, Mapping) and isinstance(found, Mapping):
        for key in found:
            if key in own:
                _check_alike(own[key], found[key], f"{where}.{key}")
        return
    if isinstance(own, list | tuple) and isinstance(found, list | tuple):
        for value in found:
            if own:
                _check_alike(own[0], value, where)
        return
    if own is None and found is not None and not _is_number(found):
        raise CheckpointError(f"its {where} is {str(found)[:80]!r}")
    numbers = _is_number(own) and _is_number(found)
    if own is not None and not numbers and not isinstance(found, Tensor if isinstance(own, Tensor) else type(own)):
        raise CheckpointError(f"its {where} is {str(found)[:80]!r}, not like {str(own)[:80]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _check_moved(own: Any, found: Any, where: str) -> None:
    """Whether a value can be one's own some steps later: numbers have moved, and nothing else has."""
    if isinstance(own, Mapping) and isinstance(found, Mapping):
        for key, value in own.items():
            if key not in found:
                raise CheckpointError(f"its {where} has no {key!r}")
            _check_moved(value, found[key], f"{where}.{key}")
    elif isinstance(own, list | tuple) and isinstance(found, list | tuple) and len(own) == len(found):
        for mine, theirs in zip(own, found):
            _check_moved(mine, theirs, where)
    elif isinstance(own, bool) or not _is_number(own):
        if own is not None and (type(own) is not type(found) or own != found):
            raise CheckpointError(f"its {where} is {str(found)[:80]!r}, not {str(own)[:80]!r}")
    elif not _is_number(found) or isinstance(found, bool):
        raise CheckpointError(f"its {where} is {str(found)[:80]!r}, no number")


def _check_random(own: Any) -> None:
    """Whether the states of random generators are such; those in use stay as they are."""
    before = random_state()
    try:
        states: Sequence[Any] = [own["random"]] + ([] if own["epoch"] is None else [own["epoch"]["random"]])
        for state in states:
            set_random_state(state)
        for state in () if own["epoch"] is None else own["epoch"]["generators"]:
            cpu = torch.Generator()
            if state.dtype != torch.uint8 or len(state) == len(cpu.get_state()):
                cpu.set_state(state)
    except Exception as error:
        raise CheckpointError(f"its states of random generators are none: {type(error).__name__}: {error}") from error
    finally:
        set_random_state(before)
