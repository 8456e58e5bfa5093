"""Custom functions, checkpoints, regions without gradients, autocast, threads, transforms."""

from __future__ import annotations

import concurrent.futures
import threading

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .table import case, data, loss_of, mlp, train

# Custom functions


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-1, 1)


class OwnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.mT + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.mT @ x, g.sum(0)


class Customs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = Straight.apply(self.a(x))
        h = OwnLinear.apply(h, self.b.weight, self.b.bias).relu()
        ste = h + (h.round() - h).detach()
        return self.c(Reverse.apply(ste, 0.5)), h


@case()
def custom_functions():
    """Gradient reversal, a straight-through sign, a linear layer that reads its parameters itself, x + (q(x) - x).detach()."""

    def step(model, i):
        return train(model, data(5, 6))

    return Customs(), step


class Pair(torch.autograd.Function):
    """A linear layer's output and its double, of a weight that the function reads itself."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.mT, 2 * x @ w.mT

    @staticmethod
    def backward(ctx, g, h):
        x, w = ctx.saved_tensors
        return (g + 2 * h) @ w, (g + 2 * h).mT @ x


class TwoResults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        one, two = Pair.apply(self.a(x), self.b.weight)
        return one.relu() + two.relu(), one * 1


@case()
def custom_with_two_results():
    """A function of two results that reads a weight: the feedback of the weight is scaled once."""

    def step(model, i):
        return train(model, data(5, 6))

    return TwoResults(), step


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = mlp(6, 8, 6), mlp(6, 8, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.3)
        self.reentrant = reentrant

    def forward(self, x):
        h = checkpoint(lambda y: self.drop(self.a(y)).relu(), x, use_reentrant=self.reentrant)
        h = checkpoint(self.b, h, use_reentrant=self.reentrant)
        return self.c(h)


@case(same=True)
def checkpointed():
    """Checkpoints of the newer kind, with dropout inside."""

    def step(model, i):
        x = data(5, 6).requires_grad_()
        return train(model, x), x.grad

    return Checkpointed(False), step


@case(same=True)
def checkpointed_reentrant():
    """Checkpoints of the older kind: a backward inside the backward."""

    def step(model, i):
        x = data(5, 6).requires_grad_()
        return train(model, x), x.grad

    return Checkpointed(True), step


# Regions


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        with torch.no_grad():
            target = self.a(x).tanh()
        h = self.b(x)
        h = h + self.b(h.detach()).relu()
        with torch.no_grad():
            scale = h.norm()
            with torch.enable_grad():
                h = self.c(h)
        return h / scale, (target * h.sum(-1, keepdim=True)).sum()


@case()
def no_grad_regions():
    """no_grad and enable_grad inside forward, and detach."""

    def step(model, i):
        return train(model, data(5, 6))

    return Regions(), step


@case(static=True)
def no_grad_outside():
    """Calls under no_grad and inference_mode between the steps, whose results are used."""

    def step(model, i):
        with torch.no_grad():
            teacher = model(data(5, 6))
        with torch.inference_mode():
            looked = float(model(data(5, 6)).sum())
        out = model(data(5, 6))
        ((out - 0.9 * teacher) ** 2).mean().backward()
        return out, looked, teacher.requires_grad

    return mlp(6, 8, 3), step


class Autocasting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.a(x).relu()
            with torch.autocast("cpu", enabled=False):
                h = self.b(h.float())
        return h


@case(lfp=False)
def autocast_inside():
    """autocast inside forward, switched off again in the middle."""

    def step(model, i):
        return train(model, data(5, 6).float())

    return Autocasting().float(), step


@case(lfp=False)
def autocast_outside():
    """autocast around the call, then none, then autocast again; nothing stays switched on."""
    model = mlp(6, 8, 3).float()

    def step(model, i):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=i != 1):
            out = model(data(5, 6).float())
        assert not torch.is_autocast_enabled("cpu")
        loss_of(out.float()).backward()
        return out, F.linear(data(2, 6).float(), model[0].weight)

    return model, step


@case()
def two_threads():
    """One model called from three threads at once, after a first call: torch.export traces in one thread alone."""

    def step(model, i):
        outs: dict[int, Tensor] = {}
        if i == 0:
            model(data(5, 6))

        def work(j: int) -> None:
            outs[j] = model(data(5, 6, seed=j))

        threads = [threading.Thread(target=work, args=(j,)) for j in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        loss_of([outs[j] for j in range(3)]).backward()
        return [outs[j] for j in range(3)]

    return mlp(6, 8, 3), step


class Threaded(nn.Module):
    def __init__(self, pool) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.run = lambda parts, x: [work.result() for work in [pool.submit(part, x) for part in parts]]

    def forward(self, x):
        left, right = self.run([self.left, self.right], x)
        return self.head(left.relu() * right.tanh())


@case()
def parts_in_threads():
    """Parts of one model run side by side in threads that were there before."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(int).result()
    return Threaded(pool), lambda model, i: train(model, data(5, 6, seed=i))


class Vmapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.func.vmap(lambda row: self.a(row).tanh())(x)
        g = torch.func.grad(lambda y: y.sin().sum())(h)
        j = torch.func.functional_call(self.b, {"weight": self.b.weight * 2, "bias": self.b.bias}, (h + g,))
        return j


@case()
def functional_transforms():
    """vmap, grad and functional_call inside forward."""

    def step(model, i):
        return train(model, data(5, 6))

    return Vmapped(), step


@case()
def transforms_of_the_model():
    """functional_call of the wrapped model with parameters of one's own."""

    def step(model, i):
        params = {k: (v.detach() * 1.1).requires_grad_() for k, v in model.named_parameters()}
        out = torch.func.functional_call(model, params, (data(5, 6),))
        loss_of(out).backward()
        return out, [p.grad for p in params.values()]

    return mlp(6, 8, 3), step
