"""Gradients, transforms and modules made inside forward."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..table import case, data, mlp, train


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        params, buffers = torch.func.stack_module_state(list(self.members))
        params = {name: torch.stack([dict(m.named_parameters())[name] for m in self.members]) for name in params}
        run = lambda p, x: torch.func.functional_call(self.members[0], p, (x,))  # noqa: E731
        return self.head(torch.func.vmap(run, (0, None))(params, x).tanh().mean(0))


@case(often=False)
def ensemble_in_vmap():
    """An ensemble whose stacked weights are run by vmap."""
    return Ensemble(), lambda model, i: train(model, data(5, 6, seed=i))


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.rate = mlp(6, 8, 3), nn.Parameter(torch.tensor(0.1))

    def forward(self, x, y):
        params = dict(self.net.named_parameters())
        for _ in range(2):
            inner = ((torch.func.functional_call(self.net, params, (x,)) - y) ** 2).mean()
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            params = {k: p - self.rate * g for (k, p), g in zip(params.items(), grads)}
        return torch.func.functional_call(self.net, params, (y @ torch.ones(3, 6),))


@case()
def inner_loop():
    """Two inner steps whose rate is learned (MAML), by functional_call and create_graph."""
    return Adapted(), lambda model, i: train(model, data(5, 6, seed=i), data(5, 3, seed=i + 9))


class Jacobians(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)), nn.Linear(4, 2)

    def forward(self, x):
        y, tangent = torch.func.jvp(self.net, (x,), (torch.ones_like(x),))
        trace = torch.func.vmap(torch.func.jacrev(lambda row: self.net(row)))(x).diagonal(dim1=1, dim2=2).sum(-1)
        z, pull = torch.func.vjp(self.net, x)
        return self.head(y + 0.1 * tangent + 0.1 * pull(z)[0]), trace


@case()
def jacobians_inside():
    """jvp, jacrev and vjp of a part inside forward, trained through."""
    return Jacobians(), lambda model, i: train(model, data(5, 4, seed=i))


class Taught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.probe, self.head = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.optimizer = torch.optim.SGD(self.probe.parameters(), 0.1)

    def forward(self, x):
        h = self.net(x).relu()
        loss = self.probe(h.detach()).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.head(h) + self.probe(h.detach()).detach().sum()


@case()
def trained_inside():
    """A probe with an optimizer of its own takes a step inside forward, by backward()."""
    return Taught(), lambda model, i: train(model, data(5, 6, seed=i))


class CopiedInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = mlp(6, 8, 6), nn.Linear(6, 3)

    def forward(self, x):
        teacher = copy.deepcopy(self.net).requires_grad_(False)
        h = self.net(x)
        with torch.no_grad():
            for p in teacher.parameters():
                p.mul_(0.9)
        return self.head(h), teacher(h)


@case()
def copied_inside():
    """A part is copied inside forward; the copy is frozen, changed and run."""
    return CopiedInside(), lambda model, i: train(model, data(5, 6, seed=i))


class Made(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        norm = nn.LayerNorm(8)
        extra = nn.Linear(8, 8)
        with torch.no_grad():
            extra.weight.copy_(torch.eye(8))
        bound = nn.Linear(6, 3)
        bound.weight = nn.Parameter(self.head.weight.detach()[:, :6])
        return self.head(extra(norm(self.body(x)))).relu() + bound(x)


@case()
def modules_made_inside():
    """Modules are made inside forward, used and thrown away."""
    return Made(), lambda model, i: train(model, data(5, 6, seed=i))


class Fixpoint(nn.Module):
    """A deep equilibrium model, as its authors' tutorial has it."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.inject, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def cell(self, z, x):
        return torch.tanh(0.3 * self.f(z) + self.inject(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(30):
                z = self.cell(z, x)
        z = self.cell(z, x)
        z0 = z.clone().detach().requires_grad_()
        f0 = self.cell(z0, x)

        def backward_hook(grad):
            g = grad
            for _ in range(30):
                g = torch.autograd.grad(f0, z0, g, retain_graph=True)[0] + grad
            return g

        if z.requires_grad:
            z.register_hook(backward_hook)
        return self.head(z)


@case()
def fixed_point():
    """A fixed point, whose backward pass is another fixed point, found inside a tensor hook."""
    return Fixpoint(), lambda model, i: train(model, data(5, 6, seed=i))


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, f, *params):
        ctx.f = f
        with torch.no_grad():
            y = x + f(x)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = x + ctx.f(x)
        params = list(ctx.f.parameters())
        gx, *gs = torch.autograd.grad(y, [x, *params], g)
        return (gx, None, *gs)


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = mlp(6, 8, 6), nn.Linear(6, 3)
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        return self.head(Reversible.apply(self.first(x), self.f, *self.f.parameters()))


@case()
def run_again_in_backward():
    """A custom function that runs a part again in its backward and takes gradients of its parameters there."""
    return Reversed(), lambda model, i: train(model, data(5, 6, seed=i))
