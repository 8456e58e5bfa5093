"""What every update policy is: which parameters it acts on, and when."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import PolicyError

__all__ = ["Pairs", "Policies", "Policy", "checked"]

Pairs = list[tuple[str, Tensor]]


class Policy:
    """The base: which parameters, and how it gets to them. A policy of your own overrides `apply`, or `start` and `after`.

    Args:
        pattern: names of the parameters it acts on, shell style (`"encoder.*"`, `"*.weight"`), one or several.
        exclude: names that it leaves alone.
    """

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

    def attach(self, optimizer: Optimizer, model: nn.Module) -> Any:
        """Act before every step of the optimizer; its `state_dict` carries the policy's state.

        Args:
            model: gives the parameters their names.

        Returns:
            A handle with `remove()`.

        Raises:
            PolicyError: none of the optimizer's parameters matches.
        """
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = [(name, p) for name, p in model.named_parameters() if id(p) in own]
        if not any(self.matches(name) for name, _ in named):
            shown = ", ".join(name for name, _ in named[:3])
            raise PolicyError(
                f"{type(self).__name__}: no trained parameter matches {self.pattern}; there are {shown}, ..."
            )
        with torch.no_grad():
            self.start([(name, p) for name, p in named if self.matches(name)], optimizer)
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

        handles = (
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self(named)),
            optimizer.register_step_post_hook(settle),
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(load),
        )

        def remove() -> None:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                self.stop()

        return SimpleNamespace(remove=remove)


class Policies(Policy):
    """Several policies, in their order."""

    def __init__(self, *policies: Policy) -> None:
        super().__init__()
        self.policies = policies

    def matches(self, name: str) -> bool:
        return any(policy.matches(name) for policy in self.policies)

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
