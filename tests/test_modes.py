"""A wrapped model inside other people's modes, transforms and tracers: as outside of them, as the plain model, or refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import lfpgraph
from lfpgraph.errors import LiveOnlyError, TraceError, WrapError

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def step(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    model(X).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# By name: the mode, and what the static engine says of it; None where it runs as ever.
AROUND: dict[str, tuple[Callable[[], Any], type[Exception] | None]] = {
    "anomaly": (torch.autograd.detect_anomaly, TraceError),
    "saved on the CPU": (torch.autograd.graph.save_on_cpu, None),
    "saved tensors packed": (lambda: torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda x: x), None),
    "mutation allowed": (torch.autograd.graph.allow_mutation_on_saved_tensors, LiveOnlyError),
    "operations counted": (lambda: FlopCounterMode(display=False), LiveOnlyError),
    "functions seen": (Functions, LiveOnlyError),
    "operations seen": (Dispatch, LiveOnlyError),
    "profiler": (lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), None),
    "without mkldnn": (lambda: torch.backends.mkldnn.flags(enabled=False), None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AROUND)
def test_a_step_inside_a_mode(engine: str, name: str) -> None:
    want, model = step(lfpgraph.wrap(Net(), engine=engine)), lfpgraph.wrap(Net(), engine=engine)
    mode, refused = AROUND[name]
    with mode():
        with pytest.raises(refused) if refused and engine == "static" else contextlib.nullcontext():
            step(model)
            torch.testing.assert_close(step(model), want)
    torch.testing.assert_close(step(model), want)


def _dual(model: nn.Module) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(X, X))).tangent


def _each_row(model: nn.Module) -> Any:
    loss = lambda ps, x: torch.func.functional_call(model, ps, (x,)).square().sum()  # noqa: E731
    return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), X)


def _ensemble(model: nn.Module) -> Any:
    state = torch.func.stack_module_state([model, copy.deepcopy(model)])
    return torch.func.vmap(lambda p, b: torch.func.functional_call(model, (p, b), (X,)))(*state)


# What they make of a wrapped model, they make of the plain one.
TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "vmap": lambda model: torch.func.vmap(model)(X),
    "vmap, random": lambda model: torch.func.vmap(model, randomness="different")(X),
    "jacrev": lambda model: torch.func.jacrev(model)(X[0]),
    "jacfwd": lambda model: torch.func.jacfwd(model)(X[0]),
    "hessian": lambda model: torch.func.hessian(lambda x: model(x).sum())(X[0]),
    "jvp": lambda model: torch.func.jvp(model, (X,), (X,)),
    "vjp": lambda model: torch.func.vjp(model, X)[1](torch.ones(5, 3)),
    "linearize": lambda model: torch.func.linearize(model, X)[1](X),
    "a gradient for each row": _each_row,
    "an ensemble": _ensemble,
    "dual numbers": _dual,
    "jacobian forward": lambda model: functional.jacobian(model, X, vectorize=True, strategy="forward-mode"),
    "hvp": lambda model: functional.hvp(lambda x: model(x).square().sum(), X, X),
    "jit.trace": lambda model: torch.jit.trace(model, X)(X),
    "symbolic_trace": lambda model: torch.fx.symbolic_trace(model)(X),
    "export": lambda model: torch.export.export(model, (X,)).module()(X),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_and_tracers_see_the_plain_model(engine: str, name: str) -> None:
    want, model = step(lfpgraph.wrap(Net(), engine=engine)), lfpgraph.wrap(Net(), engine=engine)
    step(model)
    refused = engine == "static" and name == "hvp"  # a second derivative
    with pytest.raises(WrapError, match="second derivative") if refused else contextlib.nullcontext():
        for a, b in zip(tree_leaves(TRANSFORMS[name](model)), tree_leaves(TRANSFORMS[name](Net())), strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(step(model), want)
