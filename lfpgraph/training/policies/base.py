"""What every update policy is: which parameters it acts on, and when."""

from __future__ import annotations

import fnmatch
import logging
import weakref
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import PolicyError

__all__ = ["Pairs", "Policies", "Policy", "checked"]

log = logging.getLogger("lfpgraph")
Pairs = list[tuple[str, Tensor]]


class Policy:
    """The base: which parameters, and how it gets to them. A policy of your own overrides `apply`, or `start` and `after`.

    Args:
        pattern: names of the parameters it acts on, shell style (`"encoder.*"`, `"*.weight"`), one or several.
        exclude: names that it leaves alone.
    """

    _optimizer_at: weakref.ref[Optimizer] | None = None  # the one it was last attached to

    def __init__(self, pattern: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()) -> None:
        self.pattern = (pattern,) if isinstance(pattern, str) else tuple(pattern)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def matches(self, name: str) -> bool:
        """Whether the policy acts on a parameter."""
        hit = any(fnmatch.fnmatchcase(name, p) for p in self.pattern)
        return hit and not any(fnmatch.fnmatchcase(name, p) for p in self.exclude)

    def __call__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Act once on named parameters, as `model.named_parameters()` gives them, in place on `.grad`."""
        with torch.no_grad():
            self.apply([(n, p) for n, p in parameters if p.grad is not None and self.matches(n)])

    def start(self, parameters: Pairs, optimizer: Optimizer) -> None:
        """Once, when the policy is attached: `parameters` are all that it acts on."""

    def apply(self, parameters: Pairs) -> None:
        """Before each step: change the `.grad` of these parameters in place; all have one."""
        raise NotImplementedError

    def after(self) -> None:
        """After each step, when the optimizer has moved the parameters."""

    def stop(self) -> None:
        """Once, when the policy is taken off."""

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered from step to step; tensors by parameter name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name != "_optimizer_at"
        }  # a copy is attached to nothing

    def attach(self, optimizer: Optimizer, model: nn.Module) -> Any:
        """Act before every step of the optimizer; its `state_dict` carries the policy's state.

        A policy that remembers something acts on one optimizer at a time: attached to a second one it begins anew, and a step
        of the first is refused. Parameters that the optimizer is given later are left to it, with a warning.

        Args:
            model: gives the parameters their names.

        Returns:
            A handle with `remove()`.

        Raises:
            PolicyError: none of the optimizer's parameters matches; the policy is attached to it already, or another of its kind.
        """
        named = self._named(optimizer, model)
        chosen = [(name, p) for name, p in named if self.matches(name)]
        attached = optimizer.__dict__.setdefault("_lfpgraph_attached", [])
        self._check_alone({name for name, _ in chosen}, attached)
        with torch.no_grad():
            if self._left_for(optimizer):
                self.stop()  # where it was before
            self.start(chosen, optimizer)
        entry = (self, {name for name, _ in chosen})
        attached.append(entry)
        self._optimizer_at = weakref.ref(optimizer)
        key = f"lfpgraph.training.policies.{len(getattr(optimizer, '_lfpgraph_policies', []))}"
        optimizer.__dict__.setdefault("_lfpgraph_policies", []).append(self)

        def save(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            kept = self.state_dict()
            return {**state, key: kept} if kept else state

        def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
            if key in state:
                self.load_state_dict(state[key])

        def settle(*_: Any) -> None:
            with torch.no_grad():
                self.after()

        count = _count(optimizer)

        def act(optimizer: Optimizer, *_: Any) -> None:
            nonlocal count
            if self.remembers() and self._left_for(optimizer):
                raise PolicyError(
                    f"this {type(self).__name__} has since been attached to another optimizer, and remembers for one alone: make "
                    "one for each"
                )
            if _count(optimizer) > count:
                count = _count(optimizer)
                log.warning(
                    "%s: the optimizer was given parameters after it was attached, on which it does not act: attach it behind "
                    "add_param_group", type(self).__name__
                )  # fmt: skip
            self(named)

        handles = (
            optimizer.register_step_pre_hook(act),
            optimizer.register_step_post_hook(settle),
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(load),
        )

        def remove() -> None:
            if not any(one is entry for one in attached):
                return
            attached[:] = [one for one in attached if one is not entry]
            for handle in handles:
                handle.remove()
            if not self._left_for(optimizer):
                self._optimizer_at = None
                with torch.no_grad():
                    self.stop()

        return SimpleNamespace(remove=remove)

    def _named(self, optimizer: Optimizer, model: nn.Module) -> Pairs:
        """The parameters that the optimizer holds, by the model's names."""
        kind = type(self).__name__
        if not hasattr(optimizer, "param_groups") or not isinstance(model, nn.Module):
            raise PolicyError(
                f"{kind}.attach takes an optimizer and then the model, not {type(optimizer).__name__} and {type(model).__name__}"
            )
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named: Pairs = [(name, p) for name, p in model.named_parameters() if id(p) in own]
        if not named:
            taken = [type(policy).__name__ for policy, _ in getattr(optimizer, "_lfpgraph_attached", [])]
            why = f": {', '.join(taken)} is attached to it already" if taken else ""
            raise PolicyError(
                f"{kind}: no trained parameter of this {type(model).__name__} is in the optimizer{why}; remove() what is "
                "attached, or make the optimizer of this model's parameters"
            )
        if not any(self.matches(name) for name, _ in named):
            shown = ", ".join(name for name, _ in named[:3])
            raise PolicyError(f"{kind}: no trained parameter matches {self.pattern}; there are {shown}, ...")
        return named

    def _left_for(self, optimizer: Optimizer) -> bool:
        """Whether it acts on an optimizer other than this one."""
        known = self._optimizer_at() if self._optimizer_at is not None else None
        return known is not None and known is not optimizer

    def remembers(self) -> bool:
        """Whether it keeps something from step to step, and so can act on one optimizer only."""
        return type(self).state_dict is not Policy.state_dict or type(self).start is not Policy.start

    def _check_alone(self, names: set[str], attached: list[tuple[Policy, set[str]]]) -> None:
        kind = type(self).__name__
        if any(policy is self for policy, _ in attached):
            raise PolicyError(f"this {kind} is attached already: remove() it first, or make another one")
        for policy, others in attached:
            shared = sorted(names & others)
            if self.remembers() and type(policy) is type(self) and shared and not isinstance(self, Policies):
                raise PolicyError(
                    f"another {kind} is attached to this optimizer already and acts on {shared[0]}, too: remove() it first, or "
                    "give each a pattern of its own"
                )


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


class Policies(Policy):
    """Several policies, in their order."""

    def __init__(self, *policies: Policy) -> None:
        super().__init__()
        self.policies = policies

    def matches(self, name: str) -> bool:
        return any(policy.matches(name) for policy in self.policies)

    def remembers(self) -> bool:
        return any(policy.remembers() for policy in self.policies)

    def start(self, parameters: Pairs, optimizer: Optimizer) -> None:
        for policy in self.policies:
            policy.start([(name, p) for name, p in parameters if policy.matches(name)], optimizer)

    def apply(self, parameters: Pairs) -> None:
        for policy in self.policies:
            policy.apply([(name, p) for name, p in parameters if policy.matches(name)])

    def after(self) -> None:
        for policy in reversed(self.policies):
            policy.after()

    def stop(self) -> None:
        for policy in reversed(self.policies):
            policy.stop()

    def state_dict(self) -> dict[str, Any]:
        kept = {str(i): policy.state_dict() for i, policy in enumerate(self.policies)}
        return {key: value for key, value in kept.items() if value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            self.policies[int(key)].load_state_dict(value)


def checked(name: str, value: float, low: float, high: float) -> float:
    """The value, if it is within bounds."""
    if not low <= value <= high or (name in ("share", "clip") and value == 0):
        raise PolicyError(f"{name}={value!r} must be between {low:g} and {high:g}" + " and not 0" * (name != "floor"))
    return value
