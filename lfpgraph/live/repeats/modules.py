"""Modules of torch whose forward is one operation on what they hold.

Where the expected run has that operation next, it is run at once, without torch's way from the module to the dispatcher
and from there back to Python. Whatever may see or change that way (hooks, modes, a profiler, another forward) has the
module run as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional
from torch.nn.modules import module as torch_module

__all__ = ["OneOperation", "chained", "one_operation"]

aten = torch.ops.aten
_TYPES = (Tensor, nn.Parameter, type(None))
_modes, _profile, _trace = torch._C._len_torch_function_stack, sys.getprofile, sys.gettrace
_before, _after = torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks
_before_full, _full = torch_module._global_backward_pre_hooks, torch_module._global_backward_hooks


class OneOperation(NamedTuple):
    """What forward of a class of modules is.

    Attributes:
        op: the operation. kind: the class. forward: its forward, as torch has it.
        name: of the function in `torch.nn.functional` that forward calls; function: what that is in torch.
        held: gives what the operation takes besides the module's argument, of the module's attributes.
    """

    op: OpOverload
    kind: type[nn.Module]
    forward: Any
    name: str
    function: Any
    held: Callable[[dict[str, Any]], tuple[Any, ...] | None]

    def arguments(self, own: dict[str, Any], args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The operation's arguments for a module with these attributes; None if the module is to run as it is."""
        if _is_seen(own):
            return None
        if self.kind.forward is not self.forward or getattr(functional, self.name) is not self.function:
            return None
        if len(args) != 1 or type(args[0]) is not Tensor:
            return None
        held = self.held(own)
        return None if held is None else (*args, *held)


def _is_seen(own: dict[str, Any]) -> bool:
    """Whether anybody may see that a module with these attributes is called, or change what it does."""
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    if _before or _after or _full or _before_full or "forward" in own or own.get("_compiled_call_impl") is not None:
        return True
    return bool(_modes() or _profile() or _trace())


def chained(module: nn.Module) -> list[nn.Module] | None:
    """The modules that a module calls one after the other, each with what the one before it returns, if that is all it does."""
    own = vars(module)
    if type(module) is not nn.Sequential or nn.Sequential.forward is not _CHAIN or _is_seen(own):
        return None
    return list(own["_modules"].values()) if nn.Module.__call__ is _CALL else None


_CHAIN, _CALL = nn.Sequential.forward, nn.Module.__call__


def _weight_and_bias(own: dict[str, Any]) -> tuple[Any, ...] | None:
    parameters = own["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(weight) not in _TYPES or type(bias) not in _TYPES or weight is None:
        return None
    return (weight,) if bias is None else (weight, bias)


def _known(op: OpOverload, kind: type[nn.Module], name: str, held: Any) -> OneOperation:
    return OneOperation(op, kind, kind.forward, name, getattr(functional, name), held)


_KNOWN: dict[type, OneOperation] = {
    nn.Linear: _known(aten.linear.default, nn.Linear, "linear", _weight_and_bias),
    nn.ReLU: _known(aten.relu.default, nn.ReLU, "relu", lambda own: None if own.get("inplace", True) else ()),
}


def one_operation(module: nn.Module) -> OneOperation | None:
    """What forward of a module is, if it is one operation."""
    return _KNOWN.get(type(module))
