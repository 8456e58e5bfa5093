"""Several calls and backwards, gradients inside and outside; writes in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .table import case, data, loss_of, mlp, train

# Calls and backwards


@case(static=True)
def several_calls():
    """Several calls before one backward."""

    def step(model, i):
        outs = [model(data(n, 6, seed=n)) for n in (5, 1, 3)]
        loss_of(outs).backward()
        return outs

    return mlp(6, 8, 3), step


@case(same=True)
def chained_calls():
    """What one call returned goes into the next."""

    def step(model, i):
        x = data(5, 6)
        for _ in range(3):
            x = model(x)
        loss_of(x).backward()
        return x

    return mlp(6, 8, 6), step


@case(static=True)
def two_backwards():
    """One call, two backwards through the same graph."""

    def step(model, i):
        out = model(data(5, 6))
        loss_of(out).backward(retain_graph=True)
        (out**3).mean().backward()
        return out

    return mlp(6, 8, 3), step


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = mlp(6, 8, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = self.body(x).relu()
        return {"a": self.a(h), "b": self.b(h), "h": h}


@case(static=True, same=True)
def part_of_the_outputs():
    """Backward through some of the outputs, by turns."""

    def step(model, i):
        out = model(data(5, 6))
        if i == 0:
            loss_of(out["a"]).backward()
        elif i == 1:
            loss_of(out["b"]).backward()
            assert model.a.weight.grad is None
        else:
            loss_of(out["a"]).backward(retain_graph=True)
            loss_of(out["h"]).backward()
        return list(out.values())

    return TwoHeads(), step


@case()
def autograd_grad():
    """torch.autograd.grad in place of backward; gradients of inputs too."""

    def step(model, i):
        x = data(5, 6).requires_grad_()
        out = model(x)
        grads = torch.autograd.grad(loss_of(out), [x, *model.parameters()])
        for p, g in zip(model.parameters(), grads[1:]):
            p.grad = g
        return out, list(grads)

    return mlp(6, 8, 3), step


@case(says=("second derivative",))
def double_backward():
    """A gradient penalty: create_graph outside of the model."""

    def step(model, i):
        x = data(5, 6).requires_grad_()
        out = model(x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (loss_of(out) + (g**2).sum()).backward()
        return out, g, x.grad

    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), step


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.net(x).sum(-1)
        (forces,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy, -forces


@case()
def forces():
    """Gradients taken inside forward, and trained on."""

    def step(model, i):
        return train(model, data(5, 6))

    return Forces(), step


@case()
def forces_alone():
    """The same, trained on the forces alone."""

    def step(model, i):
        energy, f = model(data(5, 6))
        loss_of(f).backward()
        return energy, f

    return Forces(), step


@case()
def gradient_inside_without_graph():
    """A gradient taken inside forward without a graph, used as a number (saliency, an inner step)."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.net(y).tanh().sum(), y)
            return self.head(self.net(x) - 0.1 * g)

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case(static=True, same=True)
def inputs_that_require_grad():
    """Inputs that need a gradient: leaves, and tensors made by another network."""
    outer = nn.Linear(4, 6)

    def step(model, i):
        outer.zero_grad()
        x, y = data(5, 6).requires_grad_(), data(5, 4)
        out = model(x), model(outer(y).tanh())
        loss_of(out).backward()
        return out, x.grad, [p.grad for p in outer.parameters()]

    return mlp(6, 8, 3), step


@case()
def accumulated():
    """Gradients are added up over two backwards with no zeroing between."""

    def step(model, i):
        return train(model, data(5, 6)), train(model, data(3, 6, seed=2))

    return mlp(6, 8, 3), step


# Writes in place and views


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        h = self.a(x)
        h.add_(x).mul_(1.5)
        h[:, 0] = x[:, 1]
        h[:, 2:4] *= 2
        h = self.b(h).relu_() * 2
        h = h.masked_fill_(x > 1, 0.5)
        h.index_put_((torch.tensor([0, 1]), torch.tensor([1, 2])), x[0, :2])
        h.view(-1)[3:7].mul_(0.5)
        rows = h[1:3]
        rows.add_(1.0)
        out = torch.zeros_like(h)
        out.copy_(h)
        buffer = torch.empty(x.shape[0], 12)
        buffer[:, :6] = out
        buffer[:, 6:].copy_(h.tanh())
        return F.relu_(buffer + 0.1)


@case()
def writes_in_place():
    """Writes of every kind: relu_, add_, slices, masks, index_put_, copy_, through views, into a new buffer."""

    def step(model, i):
        return train(model, data(5, 6))

    return InPlace(), step


class Scattered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, index):
        h = self.layer(x)
        total = torch.zeros(3, 6).index_add_(0, index, h)
        count = torch.zeros(3, 1).scatter_add_(0, index[:, None], torch.ones(len(index), 1))
        most = torch.full((3, 6), -10.0).scatter_reduce_(0, index[:, None].expand_as(h), h, "amax")
        return self.head(total / count.clamp_(min=1) + most.clamp_min(-1))


@case(static=True, same=True)
def scattered():
    """Message passing by scatter, in place."""

    def step(model, i):
        return train(model, data(5, 6), torch.tensor([0, 2, 2, 1, 0]))

    return Scattered(), step


@case()
def list_of_rows():
    """A loop that writes rows into a buffer, and reads what it wrote before."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            out = x.new_zeros(4, *x.shape)
            for t in range(4):
                out[t] = self.layer(out[t - 1] + x).tanh()
            return out

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case()
def complex_slices():
    """FFTs, complex weights, slices of a complex tensor written (as neural operators do)."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(1, 3), nn.Linear(3, 2)
            self.w = nn.Parameter(torch.view_as_complex(data(3, 3, 4, 2)))

        def forward(self, x):
            h = self.lift(x).mT
            f = torch.fft.rfft(h)
            out = torch.zeros(*f.shape, dtype=torch.cfloat if f.dtype == torch.cfloat else torch.cdouble)
            out[:, :, :4] = torch.einsum("bix,iox->box", f[:, :, :4], self.w)
            return self.head(torch.fft.irfft(out, n=h.shape[-1]).mT)

    def step(model, i):
        return train(model, data(2, 10, 1))

    return Model(), step
