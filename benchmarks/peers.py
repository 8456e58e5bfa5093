"""Other libraries' training steps, as sides beside ours, where they are installed.

lfprop 1.0.0 needs lxt 0.6.1, so it goes into a folder of its own that comes first on the path; see `make_lfprop_golden.py`.
snntorch and spikingjelly train the spiking networks by their own neurons with their own surrogate gradients.
"""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from lfpgraph.models_zoo.other_kinds import LIF
from torch import Tensor, nn

from benchmarks.models import Case

__all__ = ["PEERS", "PEER_MODELS"]

PEER_MODELS = ("mlp", "mlp-784", "digits-cnn", "vgg16-bn", "snn", "held-out: spiking CNN")


def twin(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters, so that memory holds them once."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _lfprop(case: Case) -> Callable[[], None]:
    """lfprop: the model is entered once; feedback comes from a reward handed to autograd, in an attribute of its own."""
    if isinstance(case.inputs, dict) or case.twin is not None:
        raise NotImplementedError("its composite takes models of one tensor without loops")
    _stand_ins()
    composite = importlib.import_module("lfprop.propagation.propagator_lxt").LFPEpsilonComposite(epsilon=1e-6)
    model = twin(case.model)
    entered = composite.context(model).__enter__()
    inputs = case.inputs.clone().requires_grad_()

    def run() -> None:
        out = entered(inputs)
        one_hot = torch.nn.functional.one_hot(case.labels, out.shape[-1]).to(out.dtype)
        reward = (out * (one_hot - out.softmax(-1)) / len(out)).detach()
        torch.autograd.grad((out,), (inputs,), grad_outputs=(reward,))
        for parameter in model.parameters():
            parameter.grad = -parameter.feedback  # type: ignore[attr-defined]

    return run


class _StandIn(types.ModuleType):
    """A module that has every class that is asked for, for packages that name classes which nothing here uses."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _stand_ins() -> None:
    """lfprop names classes of torchvision, and its rewritten ResNet needs it for real; nothing here has their classes."""
    names = ["lfprop.model.custom_resnet"]
    if importlib.util.find_spec("torchvision") is None:
        parts = ("", ".models", ".models.resnet", ".models.vgg", ".ops", ".ops.misc", ".transforms", ".utils")
        names += [f"torchvision{part}" for part in parts]
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = module = _StandIn(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)


class _Snntorch(nn.Module):
    """snntorch's Leaky in the place of our neurons."""

    def __init__(self, like: LIF) -> None:
        super().__init__()
        leaky = importlib.import_module("snntorch").Leaky
        self.leaky = leaky(beta=like.beta, threshold=like.threshold, reset_mechanism="subtract", reset_delay=False)

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        spike, membrane = self.leaky(current, membrane.expand_as(current))
        return spike, membrane


class _Spikingjelly(nn.Module):
    """spikingjelly's LIFNode in the place of our neurons: it keeps the membrane by itself, which is told here."""

    def __init__(self, like: LIF) -> None:
        super().__init__()
        nodes, surrogate = (
            importlib.import_module(f"spikingjelly.activation_based.{name}") for name in ("neuron", "surrogate")
        )
        self.node = nodes.LIFNode(
            tau=1 / (1 - like.beta), decay_input=False, v_threshold=like.threshold, v_reset=None,
            surrogate_function=surrogate.ATan(),
        )  # fmt: skip

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        self.node.v = membrane.expand_as(current)
        spike = self.node(current)
        return spike, self.node.v


def _spiking(neuron: type[nn.Module]) -> Callable[[Case], Callable[[], None]]:
    def side(case: Case) -> Callable[[], None]:
        like = getattr(case.model, "neuron", None)
        if not isinstance(like, LIF):
            raise NotImplementedError("it is for spiking networks")
        model: Any = twin(case.model)
        model.neuron = neuron(like)
        return lambda: case.loss(model).backward()  # type: ignore[no-untyped-call]

    return side


_ALL = {"lfprop": _lfprop, "snntorch": _spiking(_Snntorch), "spikingjelly": _spiking(_Spikingjelly)}
PEERS = {name: side for name, side in _ALL.items() if importlib.util.find_spec(name) is not None}
