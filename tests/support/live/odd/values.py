"""Values of other kinds, twins and teachers, weights made of weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from ..table import case, data, loss_of, mlp, train


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.view_as_complex(data(6, 8, 2)))
        self.phase, self.bias = nn.Parameter(data(8, seed=2)), nn.Parameter(data(8, seed=3))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        z = torch.complex(x, x.flip(0)) @ self.w
        z = z * torch.polar(torch.ones(8), self.phase)
        z = F.relu(z.abs() + self.bias) * torch.exp(1j * z.angle())
        return self.head(torch.view_as_real(z).flatten(1)), z.conj() * z


@case()
def complex_layers():
    """Complex weights, phases, modReLU, conjugates; a complex output."""

    def step(model, i):
        out, power = model(data(5, 6, seed=i))
        (loss_of(out) + power.real.mean()).backward()
        return out, power

    return Complex(), step


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6, sparse=True, max_norm=1.0, scale_grad_by_freq=False)
        self.bag = nn.EmbeddingBag(9, 6, mode="sum", sparse=True)
        self.head = nn.Linear(6, 3)

    def forward(self, ids, adjacency):
        h = self.embed(ids).sum(1) + self.bag(ids, per_sample_weights=torch.ones(ids.shape) * 0.5)
        return self.head(torch.sparse.mm(adjacency, h))


@case(often=False)
def sparse_tensors():
    """Sparse gradients, a norm kept in place by the lookup, a sparse adjacency matrix."""

    def step(model, i):
        ids = (torch.arange(12).view(4, 3) + i) % 9
        return train(model, ids, torch.eye(4).flip(0).to_sparse())

    return Sparse(), step


class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6).to(torch.bfloat16), nn.Linear(6, 3).float()

    def forward(self, x):
        h = self.b(self.a(x).to(torch.bfloat16)).relu()
        return self.c(h.float())


@case(lfp=False, often=False)
def parts_in_half():
    """Parts in bfloat16 and float32 in a float64 model."""
    return HalfInside(), lambda model, i: train(model, data(5, 6, seed=i))


class Twins(nn.Module):
    """SimSiam and BYOL at once: stop-gradients, a target that shares one weight and averages the others."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target, self.predict = mlp(6, 8, 4), mlp(6, 8, 4), mlp(4, 8, 4)
        self.target[0].weight = self.online[0].weight
        self.target.requires_grad_(False)
        self.online.requires_grad_(True)

    @torch.no_grad()
    def update(self):
        for p, q in zip(self.target.parameters(), self.online.parameters()):
            if p is not q:
                p.copy_(0.9 * p + 0.1 * q)

    def forward(self, x, y):
        self.update()
        a, b = self.online(x), self.online(y)
        p, q = self.predict(a), self.predict(b)
        with torch.no_grad():
            t = self.target(y)
        torch.set_grad_enabled(False)
        s = self.target(x)
        torch.set_grad_enabled(True)
        loss = -F.cosine_similarity(p, b.detach()).mean() - F.cosine_similarity(q, a.detach()).mean()
        return loss + F.mse_loss(p, t) + F.mse_loss(q, s)


@case()
def stop_gradient_twins():
    """Twins with stop-gradients and an averaged target that shares a weight."""

    def step(model, i):
        loss = model(data(5, 6, seed=i), data(5, 6, seed=i + 9))
        loss.backward()
        return loss

    return Twins(), step


class Inference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        with torch.inference_mode():
            features = self.frozen(x).relu()
        return self.head(self.body(features.clone() + x).relu())


@case()
def inference_mode_inside():
    """Features made in inference mode, used outside of it."""
    return Inference(), lambda model, i: train(model, data(5, 6, seed=i))


class ReversedByHook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.domain, self.head = mlp(6, 8, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(x)
        r = h * 1
        if r.requires_grad:
            handle = r.register_hook(lambda g: -0.5 * g)
            r.register_hook(lambda g: g.clamp(-1, 1))
            other = h.relu()
            gone = other.register_hook(lambda g: g * 100)
            gone.remove()
            return self.head(other), self.domain(r), handle
        return self.head(h.relu()), self.domain(r), None


@case(often=False)
def gradients_reversed_by_hook():
    """Tensor hooks that reverse and clamp gradients; one is removed before it is called."""

    def step(model, i):
        out, domain, handle = model(data(5, 6, seed=i))
        if i == 1:
            handle.remove()
        loss_of([out, domain]).backward()
        return out, domain

    return ReversedByHook(), step


class Pruned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        prune.l1_unstructured(self.a, "weight", 0.5)
        prune.random_structured(self.b, "weight", 0.3, dim=1)

    def forward(self, x):
        return self.b(self.a(x).relu())


@case(often=False)
def pruned():
    """Weights masked by torch's pruning; more is pruned, and one mask made permanent, between steps."""

    def step(model, i):
        if i == 1:
            prune.l1_unstructured(model.a, "weight", 0.2)
        if i == 2:
            prune.remove(model.b, "weight")
        return train(model, data(5, 6, seed=i))

    return Pruned(), step


class CachedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        nn.utils.parametrizations.orthogonal(self.a)
        nn.utils.parametrizations.weight_norm(self.b)

    def forward(self, x):
        with parametrize.cached():
            for _ in range(3):
                x = self.a(x).tanh()
            return self.b(x)


@case(often=False)
def parametrizations_cached():
    """An orthogonal weight used three times from one cache."""
    return CachedWeights(), lambda model, i: train(model, data(5, 6, seed=i))


class FakeQuantised(nn.Module):
    """A layer whose weight is rounded to what is observed of it: one operation, which writes to arguments behind its first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        for name, value in (("low", 0.0), ("high", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.tensor([value], dtype=torch.float32))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))
        self.float()

    def forward(self, x):
        on = torch.ones(1, dtype=torch.long)
        seen = self.low, self.high, self.scale, self.zero
        weight = torch.fused_moving_avg_obs_fake_quant(self.a.weight, on, on, *seen, 0.01, -128, 127, 0)
        return self.head(nn.functional.linear(x.float(), weight, self.a.bias).relu())


@case(often=False)
def weights_quantised_as_they_train():
    return FakeQuantised(), lambda model, i: train(model, data(5, 6, seed=i))
