"""Rules of other libraries as rules here: autograd Functions in reward form, as LXT writes its own.

Such a function computes the operation, and its backward takes the reward of the output and returns the reward of each
input (Achtibat et al. 2024). Rules here carry signals, rewards per unit of activation; the adapter converts.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import CompositeError
from ..numerics import stabilize
from ..registry import Call, Handler, Signals, find_rule
from .composite import Composite, Ruleset

__all__ = ["from_reward_function", "lxt_fits", "lxt_handlers"]

aten = torch.ops.aten
_LEAST = 1e-12


def from_reward_function(function: Callable[..., Tensor]) -> Handler:
    """A rule made of a function in reward form.

    Args:
        function: takes the operation's own arguments and returns its result, through autograd Functions whose backward
            maps the reward of the result to the rewards of the tensors among them (as `lxt.explicit.functional` has them).

    Returns:
        A rule for `Ruleset.handlers` or `lfpgraph.rule`. Arguments that get no reward, such as LXT's weights, get none.
    """
    if not callable(function):
        raise CompositeError(f"from_reward_function takes a function, such as MyFunction.apply, not {function!r}")

    def rewarded(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
        if isinstance(s, list | tuple):
            raise CompositeError(f"{call.op} has several outputs; a function in reward form serves operations of one")
        leaves = [x.detach().requires_grad_(active) for x, active in zip(call.inputs, call.active)]
        place = iter(leaves)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: next(place), (args, kwargs))
        with torch.enable_grad():
            out = function(*args, **kwargs)
        asked = [leaf for leaf, active in zip(leaves, call.active) if active]
        found = iter(torch.autograd.grad(out, asked, call.reward(s).contiguous(), allow_unused=True))
        epsilon = call.stabilized = call.epsilon or _LEAST
        rewards = [next(found) if active else None for active in call.active]
        return [None if r is None else r / stabilize(x, epsilon) for r, x in zip(rewards, call.inputs)]

    rewarded.__name__ = getattr(function, "__name__", "rewarded")
    return rewarded


def lxt_handlers(epsilon: float | None = None) -> dict[Any, Handler]:
    """Rules made of LXT's own functions (`lxt.explicit.functional`), by operation; LXT is imported when one is first used.

    Args:
        epsilon: for those that take one; None leaves each its default. LXT adds it whatever the sign of the output.
    """
    return {op: _lazy(name, epsilon) for op, name in _LXT.items()}


def lxt_fits(call: Call) -> bool:
    """Whether LXT has a function for a call: where it has none, the rules of `lxt_handlers` are the registry's."""
    return call.op in _LXT and not call.is_region and _is_theirs(call, _LXT[call.op])


# The function below (`_Lxt`) that stands for an operation.
_LXT = {
    aten.linear.default: "linear",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.softmax.int: "softmax",
    aten.add.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.mean.dim: "mean",
    aten.layer_norm.default: "layer_norm",
    aten.scaled_dot_product_attention.default: "attention",
    aten.gelu.default: "identity",
    aten.silu.default: "identity",
    aten.tanh.default: "identity",
    aten.sigmoid.default: "identity",
    aten.relu.default: "identity",
}


class _Lxt:
    """LXT's functions with the signatures of the operations."""

    def __init__(self, epsilon: float | None) -> None:
        if importlib.util.find_spec("lxt") is None:
            raise CompositeError("LXT is not installed; pip install --no-deps lxt")
        import lxt.explicit.functional as functions
        import lxt.explicit.rules as rules

        self.f, self.rules = functions, rules
        self.how = {} if epsilon is None else {"epsilon": epsilon}

    def identity(self, op: Any) -> Callable[..., Tensor]:
        """An activation function that hands its reward on unchanged."""
        return lambda x, *rest, **named: self.rules.identity_fn.apply(lambda t: op(t, *rest, **named), x)

    def linear(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self.f.linear_epsilon(x, w, b, **self.how)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.f.matmul(a, b, False, **self.how)

    def softmax(self, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
        return self.f.softmax(x, dim, dtype)

    def add(self, a: Any, b: Any, alpha: float = 1) -> Tensor:
        return self.f.add2(a, b if alpha == 1 else b * alpha, False, **self.how)

    def mul(self, a: Any, b: Any) -> Tensor:
        return self.f.mul2(a, b, False)

    def mean(self, x: Tensor, dim: Any, keepdim: bool = False, dtype: Any = None) -> Tensor:
        return self.f.mean(x, dim[0], keepdim, **self.how)  # theirs takes one dimension, as a number

    def layer_norm(self, x: Tensor, shape: Any, w: Any = None, b: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
        out = self.f.layer_norm(x, w, b, eps)
        if self.how.get("epsilon") == 0 and out.requires_grad:  # theirs divides by out + 1e-6, whatever is asked for
            value = out.detach()
            out.register_hook(lambda reward: torch.where(value == 0, 0.0, reward * (value + 1e-6) / value))
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, p: float = 0.0, causal: bool = False,
                  scale: float | None = None, **_: Any) -> Tensor:  # fmt: skip
        scores = self.mul(self.matmul(q, k.transpose(-1, -2)), q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return self.matmul(self.softmax(scores, -1), v)


_lxt = functools.cache(_Lxt)


def _lazy(name: str, epsilon: float | None) -> Handler:
    """The rule that asks one of LXT's functions, or the registry's where none fits; LXT is imported at the first call."""

    def rule(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
        theirs = _lxt(epsilon)
        if not _is_theirs(call, name):
            ours = find_rule(call.op)
            assert ours is not None
            return ours.handler(call, s, *args, **kwargs)
        function = theirs.identity(call.op) if name == "identity" else getattr(theirs, name)
        return from_reward_function(function)(call, s, *args, **kwargs)

    rule.__name__ = f"lxt_{name}"
    return rule


def _is_theirs(call: Call, name: str) -> bool:
    """Whether LXT's function fits: two activations of one shape to add or multiply, a norm over the last dimension."""
    if name in ("add", "mul", "matmul"):
        return sum(call.active) == 2 and all(x.shape[:-2] == call.inputs[0].shape[:-2] for x in call.inputs)
    if name == "layer_norm":
        return len(call.args[1]) == 1 and len(call.args) > 3
    if name == "mean":
        dims = call.args[1]
        return isinstance(dims, list | tuple) and len(dims) == 1 and call.inputs[0].shape[dims[0]] != 1
    if name == "attention":
        return all(call.active[:3]) and call.kwargs.get("enable_gqa", False) is False
    return name != "softmax" or call.args[1] in (-1, call.inputs[0].dim() - 1)


def lxt_composite(attnlrp: Composite) -> Composite:
    """LXT's own functions where they fit, and the rules of `attnlrp` elsewhere."""
    handlers = {**attnlrp.default.handlers, **lxt_handlers()}
    return Composite("lxt", Ruleset(epsilon=1e-6, scale="signal", handlers=handlers))
