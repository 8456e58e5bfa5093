"""What callers do: graphs cut by hand, checkpoints, backward() in every form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ..table import case, data, loss_of, mlp, train


@case()
def cut_by_hand():
    """The caller cuts the graph between two calls and hands the gradient on itself."""

    def step(model, i):
        h = model[0](data(5, 6, seed=i))
        cut = h.detach().requires_grad_()
        out = model[1](cut)
        loss_of(out).backward()
        h.backward(cut.grad)
        return out, cut.grad

    return nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3)), step


@case(often=False)
def checkpoint_around_the_call():
    """Checkpoints of both kinds around the model's call."""

    def step(model, i):
        x = data(5, 6, seed=i).requires_grad_()
        out = checkpoint(model, x, use_reentrant=i == 1)
        loss_of(out).backward()
        return out, x.grad

    return mlp(6, 8, 3), step


class InParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        return self.head(checkpoint_sequential(self.body, 2, x, use_reentrant=False))


@case(often=False)
def checkpointed_in_sequence():
    """checkpoint_sequential."""
    return InParts(), lambda model, i: train(model, data(5, 6, seed=i))


class NestedCheckpoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def inner(self, x):
        return self.b(x).tanh()

    def outer(self, x):
        return checkpoint(self.inner, F.dropout(self.a(x), 0.2), use_reentrant=False)

    def forward(self, x):
        return self.c(checkpoint(self.outer, x, use_reentrant=False))


@case()
def checkpoints_in_checkpoints():
    """A checkpoint inside another one, with dropout between."""
    return NestedCheckpoints(), lambda model, i: train(model, data(5, 6, seed=i))


@case(often=False)
def given_gradients():
    """backward(gradient=...), backward(inputs=...), grad with grad_outputs and allow_unused."""

    def step(model, i):
        x = data(5, 6, seed=i).requires_grad_()
        out = model(x)
        out.backward(gradient=data(5, 3, seed=4), inputs=[x, model[0].weight], retain_graph=True)
        seen = [p.grad is None for p in model.parameters()]
        out.backward(data(5, 3, seed=5), retain_graph=True)
        free = torch.ones(2, requires_grad=True)
        more = torch.autograd.grad(out, [model[2].bias, free], data(5, 3, seed=6), allow_unused=True)
        return out, x.grad, seen, more[0], more[1]

    return mlp(6, 8, 3), step


@case(often=False)
def gradient_edges():
    """Gradients at an edge of the graph, retain_grad, hooks on nodes and on several tensors."""

    def step(model, i):
        seen: list[Tensor | None] = []
        x = data(5, 6, seed=i).requires_grad_()
        out = model(x)
        out.retain_grad()
        handles = [
            torch.autograd.graph.register_multi_grad_hook([out, x], lambda gs: seen.extend(gs)),
            out.grad_fn.register_hook(lambda ins, outs: seen.extend(outs)),
        ]
        edge = torch.autograd.graph.get_gradient_edge(out)
        (at_edge,) = torch.autograd.grad(loss_of(out), edge, retain_graph=True)
        torch.autograd.backward((edge,), (at_edge,))
        for h in handles:
            h.remove()
        return out, at_edge, out.grad, x.grad, [g for g in seen if g is not None and g.shape == x.shape]

    return mlp(6, 8, 3), step


@case(often=False)
def step_in_backward():
    """Optimizers that step as soon as a gradient has been accumulated."""
    model = mlp(6, 8, 3)
    optimizers = {p: torch.optim.SGD([p], 0.05) for p in model.parameters()}
    norms: list[Tensor] = []

    def hook(p):
        norms.append(p.grad.norm())
        optimizers[p].step()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)

    def step(model, i):
        norms.clear()
        out = train(model, data(5, 6, seed=i))
        return out, len(norms)

    return model, step
