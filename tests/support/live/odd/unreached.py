"""What no gradient reaches, behind lookups and steps: custom functions that look up themselves, hooks that are not called."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..table import case, data, train


class OwnLookup(torch.autograd.Function):
    """Rows of a table, as a function of its own that is given whole numbers and a weight."""

    @staticmethod
    def forward(ctx, places, table):
        ctx.save_for_backward(places)
        ctx.rows = table.shape[0]
        return table[places]

    @staticmethod
    def backward(ctx, g):
        (places,) = ctx.saved_tensors
        return None, g.new_zeros(ctx.rows, g.shape[-1]).index_add(0, places.flatten(), g.flatten(0, -2))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Parameter(data(7, 4)), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, places):
        return self.body(OwnLookup.apply(places, self.table)).mean(1)


@case()
def own_lookup():
    """A custom function that looks token ids up is where the activations of a model begin."""

    def step(model, i):
        return train(model, torch.tensor([[1, 2, 3], [i, 6, 1]]))

    return Tokens(), step


class Scaled(torch.autograd.Function):
    """Its backward cannot do with zeros or nothing: plain autograd never asks it where no gradient arrives."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x, factor)
        return x * factor

    @staticmethod
    def backward(ctx, g):
        assert g.abs().sum() > 0
        x, factor = ctx.saved_tensors
        return g * factor, (g * x).sum(0)


class Routed(nn.Module):
    """Rows are looked up by what a layer says is largest, or cut to whole numbers; that layer trains by nothing else."""

    def __init__(self, hooked: bool) -> None:
        super().__init__()
        self.router, self.factor = nn.Linear(4, 5), nn.Parameter(torch.ones(5))
        self.rows, self.head, self.hooked = nn.Embedding(5, 4), nn.Linear(4, 3), hooked
        self.seen: list[Tensor] = []

    def forward(self, x):
        scores = Scaled.apply(self.router(x), self.factor)
        if self.hooked:
            scores.register_hook(lambda g: self.seen.append(g.norm()))
        rows = self.rows(scores.argsort(-1)[:, 0]) + self.rows(scores[:, 0].long().clamp(0, 4))
        return self.head(rows + x)


@case(says=("receive no reward",))
def functions_that_nothing_reaches():
    """A custom function of which only lookups are made is not asked for a gradient, and its parameters have none."""

    def step(model, i):
        return train(model, data(6, 4, seed=i))

    return Routed(False), step


@case(lfp=False, says=("receive no reward",))  # a rule may know a way to what has no gradient
def hooks_that_nothing_reaches():
    """Hooks of modules, tensors and parameters are not called there either."""
    model = Routed(True)
    model.router.register_full_backward_hook(lambda module, before, after: model.seen.append(after[0].norm()))
    model.router.weight.register_hook(lambda g: model.seen.append(g.norm()))
    model.factor.register_post_accumulate_grad_hook(lambda p: model.seen.append(p.grad.norm()))

    def step(model, i):
        return [train(model, data(6, 4, seed=i)), len(model.seen)]

    return model, step
