"""What is in force around a call of a wrapped model: tracers, checkpoints, hooks, modes, parameters of odd classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils._device import DeviceContext

from ..errors import WrapError
from ..threads.turns import another_thread_traces
from ..tracing.flat import is_running_plainly

__all__ = ["hooks_of", "in_checkpoint", "in_force", "modes", "refuse_unreadable", "wants_it_as_it_is"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def wants_it_as_it_is() -> bool:
    """Whether something runs the module that wants its own operations.

    A tracer or a checker of this library, torch.export, jit.trace, fx.symbolic_trace, or a tracer on fake tensors.
    """
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if is_running_plainly() or fake is not None:
        return True
    by_flag = _symbolic_trace.is_fx_symbolic_tracing()
    by_flag = by_flag or torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or (by_flag and not another_thread_traces())


def in_checkpoint(of: str) -> bool:
    """Whether the hooks on saved tensors are those of torch.utils.checkpoint, of its first run or of its second."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__qualname__.startswith(of)


def hooks_of(module: nn.Module) -> bool:
    """Whether hooks are to be called around a module's forward."""
    own = vars(module)
    return any(own[table] for table in _HOOKS) or torch_module._has_any_global_hook()


def modes() -> list[Any]:
    """The modes that see or change each operation, but for the one of `with torch.device(...)`."""
    modes = [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]
    modes += [torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack())]
    return [mode for mode in modes if not isinstance(mode, DeviceContext)]


def in_force(module: nn.Module) -> str | None:
    """What is in force around a call and would be lost on a program's operations; None if nothing."""
    if torch_module._has_any_global_hook() and any(True for _ in module.children()):
        return "hooks on all modules (torch.nn.modules.module) are"
    return (
        "parametrize.cached(), which keeps weights of one run for the next, is" if parametrize._cache_enabled else None
    )


def refuse_unreadable(path: str, model: nn.Module, error: RuntimeError) -> None:
    """A run has failed: say so where a parameter's class takes a few chosen functions of torch, and nothing else.

    Torch's weights that compute the gradients of each sample are such, which stand in for a model's own during a call.

    Raises:
        WrapError: A parameter does not even say whether it takes a gradient, so nothing can follow its values.
    """
    for name, parameter in model.named_parameters():
        try:
            _ = parameter.requires_grad
        except RuntimeError:
            where = f"{path}.{name}" if path else name
            raise WrapError(
                f"the parameter {where} is of the class {type(parameter).__name__}, which lets nothing follow its values "
                f"({error}). Call the model with parameters of torch's own class (gradients of each sample can be computed "
                "by hooks), or wrap it with the composite 'gradient'."
            ) from error
