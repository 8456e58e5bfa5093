"""Modules that change: numbers, flags, hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .table import case, data, loss_of, mlp, train

# Numbers and flags


@case(same=True)
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


@case(same=True)
def lora_scaling():
    """A number and a flag on the module, as in adapters."""

    def step(model, i):
        model.scaling, model.enabled = 0.5 + i, i != 1
        return train(model, data(5, 6))

    return Lora(), step


@case(static=True, same=True)
def train_and_eval():
    """Modes change between steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def step(model, i):
        model.train(i != 1)
        return train(model, data(5, 6, seed=i))

    return model, step


# Hooks


@case(same=True)
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


@case(static=True)
def hooks_on_outputs():
    """Hooks on what the model returned, and a retained gradient there."""

    def step(model, i):
        out = model(data(5, 6))
        out.register_hook(lambda g: g * (i + 1))
        out.retain_grad()
        loss_of(out).backward()
        return out, out.grad

    return mlp(6, 8, 3), step


@case(static=True)
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


@case(same=True)
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
