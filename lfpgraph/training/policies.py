"""Update policies: what is done to `.grad` between backward and the optimizer's step.

    policy = Policies(NormalizeByMax(by="layer"), AdaptiveClip(0.01, exclude="classifier*"))
    policy.attach(optimizer, model)  # from now on at every optimizer.step(), in any loop and any trainer

Each takes the parameters whose names match its pattern. `.grad` holds the negative feedback of a wrapped model; the policies
take it as it comes, so they work on plain gradients as well. What a policy must remember travels in the optimizer's
`state_dict`. Clipping by a trainer comes before them, since they run when the optimizer steps.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import PolicyError, check_choice

__all__ = [
    "AdaptiveClip", "NormalizeByMax", "Policies", "Policy", "SmallestWeights", "TopK", "WeightScaled",
]  # fmt: skip

Pairs = list[tuple[str, Tensor]]


class Policy:
    """The base: which parameters, and how it gets to them. A policy of your own overrides `apply`.

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

    def apply(self, parameters: Pairs) -> None:
        """Change the `.grad` of these parameters in place; all have one."""
        raise NotImplementedError

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
        key = f"lfpgraph.training.policies.{len(getattr(optimizer, '_lfpgraph_policies', []))}"
        optimizer.__dict__.setdefault("_lfpgraph_policies", []).append(self)

        def save(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            kept = self.state_dict()
            return {**state, key: kept} if kept else state

        def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
            if key in state:
                self.load_state_dict(state[key])

        handles = (
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self(named)),
            optimizer.register_state_dict_post_hook(save),
            optimizer.register_load_state_dict_pre_hook(load),
        )

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return SimpleNamespace(remove=remove)


class Policies(Policy):
    """Several policies, in their order."""

    def __init__(self, *policies: Policy) -> None:
        super().__init__()
        self.policies = policies

    def matches(self, name: str) -> bool:
        return any(policy.matches(name) for policy in self.policies)

    def apply(self, parameters: Pairs) -> None:
        for policy in self.policies:
            policy.apply([(name, p) for name, p in parameters if policy.matches(name)])

    def state_dict(self) -> dict[str, Any]:
        kept = {str(i): policy.state_dict() for i, policy in enumerate(self.policies)}
        return {key: value for key, value in kept.items() if value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            self.policies[int(key)].load_state_dict(value)


class WeightScaled(Policy):
    """`g * max(abs(w), floor)`: LFP's update (eq. 6) of a plain gradient or signal.

    A composite with `scale="weight"` does this already; use it with `scale="signal"`, or to scale backprop.

    Args:
        floor: in units of the parameter; with 0 a weight of zero does not move.
    """

    def __init__(self, floor: float = 0.0, **names: Any) -> None:
        super().__init__(**names)
        self.floor = _checked("floor", floor, 0.0, float("inf"))

    def apply(self, parameters: Pairs) -> None:
        for _, p in parameters:
            _grad(p).mul_(p.abs().clamp_min(self.floor))


class NormalizeByMax(Policy):
    """`g / max(abs(g))`: every layer's feedback gets a largest entry of one (lfprop's `norm_backward`).

    A layer's feedback is proportional to its signal, so this normalises the signal by layer.

    Args:
        by: "layer" divides the parameters of a module by their common maximum, "tensor" each by its own.
    """

    def __init__(self, by: str = "layer", **names: Any) -> None:
        super().__init__(**names)
        check_choice("by", by, ("layer", "tensor"), PolicyError)
        self.by = by

    def apply(self, parameters: Pairs) -> None:
        groups: dict[str, list[Tensor]] = {}
        for name, p in parameters:
            groups.setdefault(name.rpartition(".")[0] if self.by == "layer" else name, []).append(_grad(p))
        for grads in groups.values():
            largest = torch.stack([g.abs().max() for g in grads if g.numel()] or [torch.zeros(())]).max()
            for g in grads:
                g.div_(torch.where(largest > 0, largest, 1.0).to(g.device))


class AdaptiveClip(Policy):
    """Adaptive gradient clipping: a unit's gradient is at most `clip` times the norm of its weights.

    `g_i * clip * max(norm(w_i), eps) / norm(g_i)` where `norm(g_i)` is larger than `clip * max(norm(w_i), eps)`. A unit is
    a row of a matrix or an output channel [o, ...]; a vector is one unit by entry, as biases and gains are.
    Source: Brock et al. 2021 (arXiv 2102.06171), eq. 3; there the last layer is left out: `exclude="classifier.*"`.

    Args:
        clip: lambda; 0.01 to 0.16 there. eps: stands for the norm of units that are zero.
    """

    def __init__(self, clip: float = 0.01, eps: float = 1e-3, **names: Any) -> None:
        super().__init__(**names)
        self.clip = _checked("clip", clip, 0.0, float("inf"))
        self.eps = _checked("eps", eps, 0.0, float("inf"))

    def apply(self, parameters: Pairs) -> None:
        for _, p in parameters:
            g = _grad(p)
            size = _unit_norm(g)
            most = self.clip * _unit_norm(p).clamp_min(self.eps)
            g.mul_(torch.where(size > most, most / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0))


def _unit_norm(x: Tensor) -> Tensor:
    """The norm of each row or output channel, [o, 1, ...]; of a vector or scalar its entries' sizes."""
    return x.abs() if x.dim() < 2 else torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


class TopK(Policy):
    """Only the share of entries with the largest feedback is kept, chosen anew at every step; the rest of `.grad` is zero.

    An optimizer with momentum or weight decay still moves entries that have it from before.

    Args:
        share: of the entries, above 0 to 1. scope: "tensor" chooses in each parameter, "all" among all of them together.
    """

    def __init__(self, share: float = 0.1, scope: str = "tensor", **names: Any) -> None:
        super().__init__(**names)
        self.share = _checked("share", share, 0.0, 1.0)
        check_choice("scope", scope, ("tensor", "all"), PolicyError)
        self.scope = scope

    def apply(self, parameters: Pairs) -> None:
        grads = [_grad(p) for _, p in parameters]
        for group in [[g] for g in grads] if self.scope == "tensor" else [grads] * bool(grads):
            sizes = torch.cat([g.abs().flatten() for g in group])
            least = _kth(sizes, self.share, largest=True)
            for g in group:
                g.mul_(g.abs() >= least)


class SmallestWeights(Policy):
    """Only the weights that are smallest at the first step are trained, the same ones to the end (SaRA).

    The mask is remembered in the optimizer's `state_dict`. Use an optimizer without weight decay, which moves all weights.
    Source: SaRA (Hu et al. 2024, arXiv 2409.06633), where the smallest 10 to 20 % of pretrained weights are trained.

    Args:
        share: of each parameter's entries, above 0 to 1.
    """

    def __init__(self, share: float = 0.1, **names: Any) -> None:
        super().__init__(**names)
        self.share = _checked("share", share, 0.0, 1.0)
        self.masks: dict[str, Tensor] = {}

    def apply(self, parameters: Pairs) -> None:
        for name, p in parameters:
            if name not in self.masks:
                self.masks[name] = p.abs() <= _kth(p.abs().flatten(), self.share, largest=False)
            _grad(p).mul_(self.masks[name].to(p.device))

    def state_dict(self) -> dict[str, Any]:
        return dict(self.masks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = dict(state)


def _kth(sizes: Tensor, share: float, largest: bool) -> Tensor:
    """The size that bounds a share of the entries, one at least."""
    count = max(1, round(share * sizes.numel()))
    if sizes.numel() == 0:
        return sizes.new_zeros(())
    return sizes.topk(count, largest=largest).values[-1]


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _checked(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high or (name in ("share", "clip") and value == 0):
        raise PolicyError(f"{name}={value!r} must be between {low:g} and {high:g}" + " and not 0" * (name != "floor"))
    return value
