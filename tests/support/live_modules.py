"""Live Python, part one: modules that change: numbers, hooks, parts, parameters, states, forward itself."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .live_table import case, data, loss_of, mlp


def train(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward, a loss, backward; the output."""
    out = model(*args, **kwargs)
    loss_of(out).backward()
    return out


# Numbers and flags


@case()
def dropout_p():
    """Dropout's probability changes between steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 3))

    def step(model, i):
        model[1].p = 0.2 * (i + 1)
        return train(model, data(5, 6, seed=i))

    return model, step


@case()
def negative_slope():
    """So does the slope of a leaky ReLU."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3))

    def step(model, i):
        model[1].negative_slope = 0.1 + 0.3 * i
        return train(model, data(5, 6))

    return model, step


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.scaling, self.enabled = 1.0, True

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + self.scaling * self.b(self.a(x)) if self.enabled else out


@case()
def lora_scaling():
    """A number and a flag on the module, as in adapters."""

    def step(model, i):
        model.scaling, model.enabled = 0.5 + i, i != 1
        return train(model, data(5, 6))

    return Lora(), step


@case()
def train_and_eval():
    """Modes change between steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def step(model, i):
        model.train(i != 1)
        return train(model, data(5, 6, seed=i))

    return model, step


# Hooks


@case()
def forward_hooks():
    """Forward hooks and pre-hooks (with keyword arguments), added and removed between steps."""
    model = nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3))
    handles: list[Any] = []

    def step(model, i):
        for handle in handles:
            handle.remove()
        handles.clear()
        if i == 0:
            handles.append(model[0].register_forward_hook(lambda m, a, out: out * 2))
        if i >= 1:
            handles.append(model[1].register_forward_pre_hook(lambda m, a: (a[0] + 1,)))
            handles.append(
                model.register_forward_pre_hook(lambda m, a, k: ((k["x"],), {}) if k else None, with_kwargs=True)
            )
        if i == 1:
            out = model(x=data(5, 6))
        else:
            out = model(data(5, 6))
        loss_of(out).backward()
        return out

    return model, step


@case()
def backward_hooks():
    """Full backward hooks and pre-hooks that change gradients."""
    model = nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3))
    seen: list[Tensor] = []

    def hook(module, grad_in, grad_out):
        seen.append(grad_out[0])
        return tuple(None if g is None else 2 * g for g in grad_in)

    model[1].register_full_backward_hook(hook)
    model[0].register_full_backward_pre_hook(lambda m, g: (g[0] + 0.1,))

    def step(model, i):
        seen.clear()
        x = data(5, 6).requires_grad_()
        out = train(model, x)
        return out, x.grad, list(seen)

    return model, step


class TensorHooks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.grads: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        h.register_hook(lambda g: 3 * g)
        h.register_hook(lambda g: self.grads.append(g.clone()))
        h.retain_grad()
        self.h = h
        return self.b(h.relu())


@case()
def tensor_hooks():
    """Hooks on intermediate tensors, inside forward, and retained gradients."""

    def step(model, i):
        model.grads.clear()
        out = train(model, data(5, 6))
        return out, model.h.grad, list(model.grads)

    return TensorHooks(), step


@case()
def hooks_on_outputs():
    """Hooks on what the model returned, and a retained gradient there."""

    def step(model, i):
        out = model(data(5, 6))
        out.register_hook(lambda g: g * (i + 1))
        out.retain_grad()
        loss_of(out).backward()
        return out, out.grad

    return mlp(6, 8, 3), step


@case()
def parameter_hooks():
    """Hooks on parameters: before and after accumulation."""
    model = mlp(6, 8, 3)
    seen: list[Tensor] = []
    model[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
    model[2].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))

    def step(model, i):
        seen.clear()
        out = train(model, data(5, 6))
        return out, list(seen)

    return model, step


@case()
def global_hooks():
    """A forward hook of all modules, for a while."""

    def step(model, i):
        handle = None
        if i == 1:
            handle = torch.nn.modules.module.register_module_forward_hook(
                lambda m, a, out: out * 1.5 if isinstance(m, nn.Linear) else None
            )
        try:
            return train(model, data(5, 6))
        finally:
            if handle is not None:
                handle.remove()

    return mlp(6, 8, 3), step


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


@case()
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


@case()
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


@case()
def forward_replaced_before():
    """forward of a part and of the model replaced before the wrap."""
    model = nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3))
    model[0].forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x).tanh(), model[0])
    old = model.forward
    model.forward = lambda x: old(x) + 1

    def step(model, i):
        return train(model, data(5, 6))

    return model, step


@case()
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


# Losses and states on the model


class Aux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x).relu()
        self.aux = (self.gate(h).softmax(-1).mean(0) ** 2).sum()
        self.features = h
        return self.b(h)


@case()
def aux_loss():
    """A loss kept on the model and added to that of its output."""

    def step(model, i):
        out = model(data(5, 6))
        (loss_of(out) + 0.5 * model.aux).backward()
        return out, model.aux

    return Aux(), step


@case()
def only_aux():
    """Only the loss kept on the model is used."""

    def step(model, i):
        model(data(5, 6))
        model.aux.backward()
        return model.aux

    return Aux(), step


@case()
def features_by_hook():
    """Features taken by a hook and used in the loss."""
    model = mlp(6, 8, 8, 3)
    kept: dict[str, Tensor] = {}
    model[2].register_forward_hook(lambda m, a, out: kept.__setitem__("h", out))

    def step(model, i):
        out = model(data(5, 6))
        (loss_of(out) + (kept["h"] ** 2).mean() + loss_of(kept["h"].softmax(-1).log())).backward()
        return out, kept["h"]

    return model, step


class Carried(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 3)
        self.h: Any = None
        self.detach = True

    def forward(self, x):
        h = self.h.detach() if self.detach and self.h is not None else self.h
        self.h = self.cell(x, h)
        return self.head(self.h)


@case()
def state_carried_detached():
    """A hidden state carried over calls, cut off between steps."""

    def step(model, i):
        return train(model, data(5, 6, seed=i))

    return Carried(), step


@case()
def state_carried():
    """A hidden state carried over the calls of one step: gradients go through all of them."""

    def step(model, i):
        model.detach, model.h = False, None
        outs = [model(data(5, 6, seed=10 * i + j)) for j in range(3)]
        loss_of(outs).backward()
        return outs

    return Carried(), step


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.calls = 0
        self.register_buffer("ema", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        out = self.layer(x)
        with torch.no_grad():
            self.ema.mul_(0.9).add_(out.mean(0), alpha=0.1)
        self.ema2 = self.ema * 2
        noise = random.random() + float(np.random.rand()) + random.gauss(0, 1)
        return out * self.calls + noise * torch.rand_like(out) + self.ema


@case()
def counters_and_draws():
    """Counters, buffers, and draws from Python's, numpy's and torch's generators."""

    def step(model, i):
        out = train(model, data(5, 6))
        return out, model.calls, random.random(), float(np.random.rand()), torch.rand(1)

    return Counted(), step


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.cache: dict[int, Tensor] = {}
        self.table: Callable[[int], Tensor] = functools.lru_cache(lambda n: torch.arange(float(n)).cos())

    def forward(self, x):
        n = x.shape[0]
        if n not in self.cache:
            self.cache[n] = torch.linspace(0, 1, n)[:, None]
        return self.layer(x) * self.cache[n] + self.table(6)


@case()
def caches():
    """A dict cache and an lru_cache filled inside forward; nothing but plain tensors stays there."""

    def step(model, i):
        out = train(model, data(4 + i % 2, 6))
        assert all(type(t) is Tensor for t in (*model.cache.values(), model.table(6)))
        return out, list(model.cache.values())

    return Cached(), step


@case()
def moved_to_another_dtype():
    """model.to(dtype) after the wrap."""

    def step(model, i):
        dtype = torch.float32 if i == 1 else torch.float64
        model.to(dtype)
        return train(model, data(5, 6).to(dtype))

    return mlp(6, 8, 3), step


@case()
def state_dict_loaded():
    """load_state_dict between steps, and with assign."""

    def step(model, i):
        state = {k: v * (1 + i) for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=i == 2)
        if i == 2:
            model.requires_grad_()
        return train(model, data(5, 6))

    return mlp(6, 8, 3), step
