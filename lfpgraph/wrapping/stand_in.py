"""What stands in place of a wrapped model's call, and of its parts' calls: it follows whatever the model is by then.

`nn.Module.__call__` calls `self._call_impl`. A stand-in under that name leaves `forward` free for others to replace (a
trainer's fused head, autocast, adapters), and what `model.compile()` compiles is the stand-in; it runs whatever the module
is when it is called, hooks and all. Each part of the model has a stand-in, too: inside a run of the whole it only says where
the run is; called by itself, as a training step may do, it gives feedback like the whole.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.utils import _in_hop_compile

from ..errors import WrapError
from ..live.engine import changes_gradients, tensors_in
from ..live.interception import recorder, unrecorded
from ..live.repeats.modules import one_operation
from ..live.repeats.replay import Replay
from ..live.repeats.steps import ANOTHER
from ..threads.turns import another_thread_traces
from ..tracing import flat
from ..tracing.flat import hide_from_compile, is_running_plainly

__all__ = ["CallStandIn", "stand_in_of"]

log = logging.getLogger("lfpgraph")
_SLOT, _COMPILED = "_call_impl", "_compiled_call_impl"


class CallStandIn:
    """The call of one module of a wrapped model.

    Args:
        module: the module. path: its dotted name in the wrapped model, "" for the model itself.
        wrapping: the `Wrapping` that all stand-ins of the model share.
    """

    def __init__(self, module: nn.Module, path: str, wrapping: Any) -> None:
        self.module, self.path, self.wrapping = module, path, wrapping
        self.whole_path = ".".join(filter(None, (wrapping.path, path)))
        self.compiled: Any = None
        self.gives_none = not changes_gradients(wrapping.composite)
        self.known = one_operation(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self._run(*args, **kwargs)
        needless = self.gives_none or not torch.is_grad_enabled()
        inside = flat.RUNS or torch.compiler.is_exporting() or needless
        if inside and self.module._compiled_call_impl is None and _is_part_of_a_run(needless):
            return self.run_module(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(2)
        if caller.f_code is _CALLER and caller.f_locals["self"] is not self.module:
            return self.of(caller.f_locals["self"])(*args, **kwargs)
        record = recorder()
        if record is None:
            return self.wrapping.run(self, args, kwargs)
        if self.path == "" and self.wrapping.path and _takes_floats(args, kwargs):
            # a part of a model: one operation for the run around it
            with unrecorded():
                return self.wrapping.run(self, args, kwargs)
        before, record.path = record.path, self.whole_path
        try:
            if self.known is not None and type(record) is Replay and not kwargs:
                out = record.at_once(self.known, vars(self.module), args)
                if out is not ANOTHER:
                    return out
            return type(self.module)._call_impl(self.module, *args, **kwargs)
        finally:
            record.path = before

    _run._torchdynamo_disable = True  # type: ignore[attr-defined]  # a compiled function that calls it compiles none of it
    # What torch says where it has to compile all, for a `torch.cond` around the model, say.
    _run._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        "lfpgraph: feedback of a wrapped model is no part of what torch compiles. Call the model itself, not within "
        "torch.cond or torch.compile(fullgraph=True), or wrap the module whose forward has the torch.cond"
    )

    def run_module(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call: its forward and the hooks around it."""
        return type(self.module)._call_impl(self.module, *args, **kwargs)

    def of(self, module: nn.Module) -> CallStandIn:
        """The stand-in of a module that has this one in its place, since it was made by copying the module's attributes."""
        if module is self.module:
            return self
        if getattr(module, "_is_replica", False):
            raise WrapError(
                f"nn.DataParallel runs copies of {type(module).__name__} without parameters of their own, which cannot be "
                "wrapped. Use torch.nn.parallel.DistributedDataParallel, or one device."
            )
        wrapping = self.wrapping if self.path else self.wrapping.again(module)
        stand_in = CallStandIn(module, self.path, wrapping)
        stand_in.place()
        return stand_in

    def place(self) -> None:
        """Put this object in place of the module's call."""
        own = vars(self.module)
        if own.get(_COMPILED) is not None:
            self.compiled = own.pop(_COMPILED)
            log.warning(
                "%s was compiled by .compile(); while it is wrapped it runs as it is", type(self.module).__name__
            )
        own[_SLOT] = self

    def remove(self) -> None:
        """Give the module its own call back."""
        own = vars(self.module)
        del own[_SLOT]
        own.pop(_COMPILED, None)  # made after the wrap, of this object
        if self.compiled is not None:
            own[_COMPILED] = self.compiled

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "compiled": None,
            "known": None,
        }  # as a module that is copied leaves what torch.compile made


def _takes_floats(args: Any, kwargs: Any) -> bool:
    """Whether a part is given activations; what a table of positions is used for, say, only the run around it sees."""
    return any(x.is_floating_point() or x.is_complex() for x in tensors_in((args, kwargs)))


def _is_part_of_a_run(needless: bool) -> bool:
    """Whether torch.compile looks at a part inside a run (for torch.cond, say) or for torch.export, not at a whole model.

    A part that `torch.cond` runs where there is no feedback to give (`needless`) runs as it is.

    To torch.compile this is a constant; what it checks again before it takes compiled code is `flat.RUNS`.
    """
    if recorder() is not None or is_running_plainly() or (needless and _in_hop_compile()):
        return True
    return torch.compiler.is_exporting() and not another_thread_traces()


_is_part_of_a_run._dynamo_marked_constant = True  # type: ignore[attr-defined]
_CALLER = nn.Module._wrapped_call_impl.__code__
hide_from_compile(CallStandIn._run)  # of a compiled model, too


def stand_in_of(module: nn.Module) -> CallStandIn | None:
    """What stands in place of a module's call, if anything does."""
    found = vars(module).get(_SLOT)
    return found.of(module) if isinstance(found, CallStandIn) else None
