"""A function of tensors traced into one functional graph: what the feedback program and the ONNX step share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.func import functionalize
from torch.fx.experimental import _config as _fx_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion

from ..errors import TraceError
from ..passes.functional import make_functional
from ..threads.silence import quiet
from ..threads.turns import one_at_a_time

__all__ = ["functional_graph", "no_autocast", "on_fakes"]

# Torch 2.11 and 2.12 multiply by kernels that ask for an open size's number, unless products are written out in Python.
_READS_SIZES = TorchVersion(torch.__version__) < (2, 13)


def functional_graph(
    function: Callable[..., Any], examples: Sequence[Any], decompositions: Any = None
) -> fx.GraphModule:
    """The graph of a function of tensors, without operations that write in place.

    Args:
        examples: the function's arguments. Of fake tensors, open sizes stay open; real ones may decide on their values.
        decompositions: what operations are to be written out as, by operation.
    """

    if any(hasattr(value, "fake_mode") for value in examples) and torch.is_anomaly_enabled():
        if torch.is_anomaly_check_nan_enabled():
            raise TraceError(
                "a program cannot be traced under torch.autograd.detect_anomaly, which looks at values. Make the model's first "
                'call outside of it, give detect_anomaly check_nan=False, or wrap(model, engine="live").'
            )

    def traced(function: Callable[..., Any]) -> fx.GraphModule:
        with one_at_a_time(), on_fakes(examples) as fake_mode:
            strict = {} if fake_mode is not None else {"_error_on_data_dependent_ops": False}
            return make_fx(function, decompositions, tracing_mode="real", **strict)(*examples)  # type: ignore[arg-type]

    module = traced(function)
    return module if make_functional(module.graph) else traced(functionalize(module, remove="mutations"))


@contextlib.contextmanager
def on_fakes(values: Sequence[Any]) -> Iterator[Any]:
    """Run operations on fake tensors as a trace does: without gradients or warnings, assuming nothing of open sizes.

    Yields the fake mode of the values, None where they are real.
    """
    fake_mode = next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)
    open_sizes = _fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    written_out = enable_python_dispatcher() if fake_mode is not None and _READS_SIZES else contextlib.nullcontext()
    with quiet(), torch.no_grad(), open_sizes, written_out, fake_mode or contextlib.nullcontext():
        yield fake_mode


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Switch autocast off: the casts that a model makes are nodes of its graph already, and no others may be added."""
    if not any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        yield
        return
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
