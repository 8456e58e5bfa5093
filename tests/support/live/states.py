"""Losses, states, counters and caches that a model keeps."""

from __future__ import annotations

import functools
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .table import case, data, loss_of, mlp, train

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


@case(same=True)
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


@case(same=True)
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


class Weakly(nn.Module):
    """Reads a setting of an object that it only refers to weakly."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner, self.body = weakref.ref(owner), mlp(6, 8, 3)

    def forward(self, x):
        return self.body(x) * self.owner().scale


class Owner:
    __slots__ = ("__weakref__", "scale")


@case()
def weak_references():
    owner = Owner()

    def step(model, i):
        owner.scale = 1.0 + i
        return train(model, data(5, 6, seed=i))

    return Weakly(owner), step
