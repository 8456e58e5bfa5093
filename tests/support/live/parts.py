"""Parts that come and go, parameters wherever they are, forward replaced."""

from __future__ import annotations

import functools
import types

import torch
from torch import nn
from torch.nn import functional as F

from .table import case, data, mlp, train

# Parts and parameters


@case()
def replaced_parts():
    """A submodule is replaced, another one is added behind, a third removed."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))

    def step(model, i):
        if i == 1:
            model[1] = nn.Tanh()
            model[0] = nn.Sequential(model[0], nn.Linear(8, 8))
        if i == 2:
            model[2] = nn.Identity()
            model.append(nn.Linear(3, 3))
        return train(model, data(5, 6))

    return model, step


@case()
def frozen_and_thawed():
    """Parameters are frozen and unfrozen between steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def step(model, i):
        model[0].requires_grad_(i != 1)
        model[2].requires_grad_(i == 1)
        return train(model, data(5, 6))

    return model, step


@case()
def unused_parameters():
    """A parameter that nothing uses keeps no gradient; another one is used now and then."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.never = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.now = True

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x) if self.now else x

    def step(model, i):
        model.now = i != 1
        return train(model, data(5, 6))

    return Model(), step


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(6, 6)
        self.items = [hidden]
        self.table = {"w": nn.Parameter(data(6, 6, seed=7))}
        self.closure = (lambda layer: lambda x: layer(x))(nn.Linear(6, 6))
        self.own = nn.ParameterList([nn.Parameter(data(6, 6, seed=8)), nn.Parameter(data(6, seed=9))])
        self.names = nn.ParameterDict({"s": nn.Parameter(data(6, seed=10))})

    def forward(self, x):
        x = self.items[0](x).relu() @ self.table["w"]
        return self.closure(x) @ self.own[0] + self.own[1] * self.names["s"]


@case()
def parameters_in_lists():
    """Parameters that named_parameters does not know, and those in ParameterList and ParameterDict."""

    def step(model, i):
        hidden = [model.items[0].weight, model.table["w"], model.closure.__closure__[0].cell_contents.weight]
        for p in hidden:
            p.grad = None
        out = train(model, data(5, 6))
        return out, [p.grad for p in hidden]

    return Lists(), step


@case(static=True, same=True)
def tied_weights():
    """An embedding tied to the head, and one layer used twice."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            x = self.embed(ids)
            x = self.layer(self.layer(x).relu())
            return self.head(x)

    def step(model, i):
        return train(model, torch.tensor([[1, 2, 3], [4, 5, 8]]))

    return Model(), step


@case()
def parametrized():
    """Weight norm (both kinds), spectral norm and a parametrization of one's own."""

    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).mT

    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        nn.utils.weight_norm(nn.Linear(6, 6)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        nn.utils.spectral_norm(nn.Linear(6, 6)),
        nn.Linear(6, 6),
    )
    nn.utils.parametrize.register_parametrization(model[4], "weight", Symmetric())

    def step(model, i):
        if i == 2:
            nn.utils.parametrize.remove_parametrizations(model[4], "weight")
        return train(model, data(5, 6))

    return model, step


@case()
def lazy_modules():
    """Lazy modules, whose parameters are made in the first call."""
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))

    def step(model, i):
        return train(model, data(5, 6))

    return model, step


# forward itself


@case(static=True)
def forward_replaced_after():
    """forward is replaced on the instance after the wrap, as a bound method and as a plain function."""
    model = mlp(6, 8, 3)

    def step(model, i):
        if i == 1:
            old = model.forward

            @functools.wraps(old)
            def new(x):
                return old(x) * 2

            model.forward = new
        if i == 2:
            model.forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x).sin(), model)
        return train(model, data(5, 6))

    return model, step


@case(static=True)
def forward_replaced_before():
    """forward of a part and of the model replaced before the wrap."""
    model = nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3))
    model[0].forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x).tanh(), model[0])
    old = model.forward
    model.forward = lambda x: old(x) + 1

    def step(model, i):
        return train(model, data(5, 6))

    return model, step


@case(same=True)
def class_patched():
    """The class's forward is patched while the model trains."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x)

    def step(model, i):
        if i == 1:
            Model.forward = lambda self, x: self.layer(x).tanh()
        if i == 2:
            nn_linear = model.layer
            model.layer.forward = lambda x: F.linear(x, nn_linear.weight) * 2
        return train(model, data(5, 6))

    return Model(), step
