"""A function of tensors traced into one functional graph: what the feedback program and the ONNX step share."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.func import functionalize
from torch.fx.experimental import _config as _fx_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..errors import TraceError
from ..passes.functional import make_functional
from ..threads.silence import quiet
from ..threads.turns import one_at_a_time

__all__ = ["RESIZES", "NotedGraph", "functional_graph", "no_autocast", "on_fakes"]

# Torch 2.11 and 2.12 multiply by kernels that ask for an open size's number, unless products are written out in Python.
_READS_SIZES = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13)
# Interpolations, by name, whose kernels ask for the numbers of open sizes.
RESIZES = (
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)
# Back from the sizes in their second argument to those in their third; for their shapes there is nothing in Python.
_RESIZED_BACK = {getattr(torch.ops.aten, f"{name}_backward").default for name in RESIZES}


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


class NotedGraph(TorchDispatchMode):
    """Notes each operation that runs, and so makes a graph of a small function in milliseconds, where `make_fx` takes a second
    with what it imports. It takes no writes, no open sizes, and no tensors from elsewhere.

    Args:
        decompositions: what operations are written out as, by operation.
    """

    def __init__(self, decompositions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.graph, self.decompositions = fx.Graph(), decompositions
        self.nodes: dict[int, fx.Node] = {}
        self.kept: list[Tensor] = []  # so that no other tensor gets the id of one

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What it would be hidden by from torch.compile takes half a second to import; nobody compiles this."""
        return False

    def placeholder(self, name: str, value: Tensor) -> fx.Node:
        """A new argument of the graph, whose value is this tensor."""
        return self.note(self.graph.placeholder(name), value)

    def note(self, node: fx.Node, value: Any) -> fx.Node:
        """Have a node stand for a value from now on: a tensor, or several."""
        node.meta["val"] = value
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.kept.append(value)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                self.note(self.graph.call_function(operator.getitem, (node, i)), item)
        return node

    def of(self, values: Any) -> Any:
        """The nodes of the tensors in a structure."""
        return tree_map_only(Tensor, lambda value: self.nodes[id(value)], values)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op in self.decompositions:
            with self:
                return self.decompositions[op](*args, **kwargs)
        value = op(*args, **kwargs)
        if isinstance(value, Tensor | list | tuple):
            self.note(self.graph.call_function(op, *self.of((args, kwargs))), value)
        return value


@contextlib.contextmanager
def on_fakes(values: Sequence[Any]) -> Iterator[Any]:
    """Run operations on fake tensors as a trace does: without gradients or warnings, assuming nothing of open sizes.

    The shape of a result is worked out in Python where torch has that: kernels in C++ (unfold, FFT) would ask an open size's
    number, and the program would fit one batch size alone.

    Yields the fake mode of the values, None where they are real.
    """
    fake_mode = next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)
    open_sizes = _fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    written_out = enable_python_dispatcher() if fake_mode is not None and _READS_SIZES else contextlib.nullcontext()
    with (
        quiet(),
        torch.no_grad(),
        open_sizes,
        written_out,
        fake_mode or contextlib.nullcontext(),
        _in_python(fake_mode),
    ):
        yield fake_mode


@contextlib.contextmanager
def _in_python(fake_mode: Any) -> Iterator[None]:
    """Let a fake mode take what is registered in Python, for shapes alone: operations go into graphs as they are."""
    if fake_mode is None or "dispatch" in vars(fake_mode):
        yield
        return
    dispatch = fake_mode.dispatch

    def by_python(op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op in _RESIZED_BACK:
            grad, _, size = args[:3]
            with fake_mode:
                return grad.new_empty(size)
        with enable_python_dispatcher():
            return dispatch(op, types, args, kwargs or {})

    fake_mode.dispatch = by_python
    try:
        yield
    finally:
        del fake_mode.dispatch


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Switch autocast off: the casts that a model makes are nodes of its graph already, and no others may be added."""
    if not any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        yield
        return
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
