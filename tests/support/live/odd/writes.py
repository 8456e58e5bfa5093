"""Writes by the caller, modes of torch, sizes and numbers taken from values."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from ..table import case, data, loss_of, mlp, train


@case()
def outputs_written_to():
    """The caller writes to what the model returned, detaches it in place, and reads it under no_grad."""

    def step(model, i):
        out = model(data(5, 6, seed=i))
        out += 1
        out[0].mul_(2)
        with torch.no_grad():
            seen = out.sum()
        kept = out.clone()
        kept.detach_()
        (loss_of(out) + (out * kept).mean()).backward()
        return out, seen

    return mlp(6, 8, 3), step


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        h = self.layer(x)
        return h, h[:, :3], h.view(-1)[::2]


@case()
def outputs_are_views():
    """Outputs that are views of each other."""

    def step(model, i):
        h, left, every = model(data(5, 6, seed=i))
        loss_of([h, left, every]).backward()
        return h, left, every

    return Views(), step


@case(often=False)
def frozen_before_backward():
    """Parameters are frozen, gradients set to zero and modes changed between forward and backward."""

    def step(model, i):
        for p in model.parameters():
            p.requires_grad_(True)
        out = model(data(5, 6, seed=i))
        model.eval()
        model.zero_grad(set_to_none=False)
        model[0].weight.grad = torch.ones_like(model[0].weight)
        if i == 1:
            model[3].requires_grad_(False)
        loss_of(out).backward()
        model.train()
        return out

    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)), step


@case(often=False)
def modes_of_torch():
    """Deterministic algorithms, another default type, a generator of one's own, forked random states."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.generator = torch.Generator().manual_seed(5)

        def forward(self, x):
            state = torch.get_rng_state()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                noise = torch.randn(6)
            torch.set_rng_state(state)
            keep = torch.empty(x.shape).bernoulli_(0.7, generator=self.generator)
            torch.set_default_dtype(torch.float32)
            small = torch.ones(1)
            torch.set_default_dtype(torch.float64)
            return self.b(self.a(x * keep).relu() + noise) * small

    def step(model, i):
        torch.use_deterministic_algorithms(True)
        try:
            return train(model, data(5, 6, seed=i)), torch.rand(1)
        finally:
            torch.use_deterministic_algorithms(False)

    return Model(), step


@case(often=False)
def errors_of_autograd():
    """A saved value that is written to, a second backward without a graph kept: the same errors as ever."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.bad = False

        def forward(self, x):
            h = self.a(x)
            e = h.exp()
            if self.bad:
                e.mul_(2)
            return self.b(e)

    def step(model, i):
        said = []
        x = data(5, 6, seed=i)
        for bad in (True, False):
            model.bad = bad
            out = model(x)
            try:
                loss_of(out).backward()
                out.sum().backward()
            except RuntimeError as error:
                said.append("inplace" in str(error) or "second time" in str(error))
            else:
                said.append("nothing")
            model.zero_grad()
        model.bad = False
        with torch.no_grad():
            model.a.weight.mul_(1.0)
        return train(model, x), said

    return Model(), step


class Learned(nn.Module):
    """A buffer and a plain attribute that require gradients, but are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("shift", data(6, seed=2).requires_grad_())
        self.scale = data(6, seed=3).requires_grad_()

    def forward(self, x):
        return self.layer(x * self.scale + self.shift.tanh())


@case()
def tensors_that_train():
    """A buffer and an attribute that require gradients."""

    def step(model, i):
        model.shift.grad = model.scale.grad = None
        return train(model, data(5, 6, seed=i)), model.shift.grad, model.scale.grad

    return Learned(), step


class NaNs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.a(x)
        safe = torch.where(h > 0, h, 1.0)
        h = torch.where(h > 0, safe.log(), h)
        chosen = h.nonzero()[:4]
        picked = h[chosen[:, 0], chosen[:, 1]].mean()
        unique, where = x.round().unique(return_inverse=True)
        return self.b(h) * picked + unique[where].mean(), torch.masked_select(h, h > 0)


@case(often=False)
def sizes_by_value():
    """Safe logarithms, nonzero, unique, masked_select."""
    return NaNs(), lambda model, i: train(model, data(5, 6, seed=i))


class Numpied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("history", torch.zeros(6))

    def forward(self, x):
        h = self.a(x)
        array = self.history.numpy()
        array += h.detach().numpy().mean(0)
        order = sorted(range(6), key=lambda j: h[:, j].sum().item())
        return self.b(h[:, order].relu() - self.history), h.tolist()[0][0]


@case(often=False)
def numpy_in_place():
    """A buffer is changed through numpy, columns are sorted by value in Python."""

    def step(model, i):
        out, number = model(data(5, 6, seed=i))
        loss_of(out).backward()
        return out, number

    return Numpied(), step


@case(often=False)
def scaled_loss():
    """A loss scaled by a gradient scaler, and by a detached norm of itself; gradients clipped."""

    def step(model, i):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        out = model(data(5, 6, seed=i))
        loss = loss_of(out)
        scaler.scale(loss / loss.detach().norm()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return out, norm

    return mlp(6, 8, 3), step


@case(often=False)
def mutation_allowed():
    """Saved tensors may be written to, or are kept elsewhere."""

    def step(model, i):
        with contextlib.ExitStack() as stack:
            if i == 1:
                stack.enter_context(torch.autograd.graph.save_on_cpu())
            if i == 2:
                stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            x = data(5, 6, seed=i)
            out = model(x)
            if i == 2:
                x.zero_()
            loss_of(out).backward()
        return out

    return mlp(6, 8, 3), step


@case(static=True)
def statistics_copied():
    """Running statistics that are copied into their buffer whole, and read after it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x):
            h = self.a(x)
            self.mean.copy_(0.9 * self.mean + 0.1 * h.mean(0).detach())
            return self.b((h - self.mean).relu())

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))


@case(static=True)
def rows_written_under_no_grad():
    """A row of a memory that is written under no_grad with a value that autograd follows, and read after it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("memory", torch.zeros(4, 8))

        def forward(self, x):
            h = self.a(x)
            with torch.no_grad():
                self.memory[0].copy_(h[0])
            return self.b((h - self.memory.mean(0)).relu())

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))
