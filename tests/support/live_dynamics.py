"""Models with loops, states, derivatives of their own, spectra and rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .live_cases import Case, case, data


class _Flow(nn.Module):
    """Affine couplings; returns the latent and the log-determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 6)) for _ in range(3))
        self.log_scale = nn.Parameter(torch.zeros(6) + 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = self.log_scale.sum().expand(len(x))
        x = x * self.log_scale.exp()
        for net in self.nets:
            a, b = x.chunk(2, -1)
            s, t = net(a).chunk(2, -1)
            s = torch.tanh(s)
            x, logdet = torch.cat([b * s.exp() + t, a], -1), logdet + s.sum(-1)
        return x, logdet


@case
def _flow() -> Case:
    def loss(m: nn.Module) -> Tensor:
        z, logdet = m(data(8, 6))
        return (0.5 * z.square().sum(-1) - logdet).mean()

    return _Flow(), loss


class _Spectral(nn.Module):
    """A Fourier layer: complex weights, written by slices into a spectrum of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.complex128) / 4)
        self.high = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.complex128) / 4)
        self.skip = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros_like(spectrum)
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :3, :3], self.low)
        out[:, :, -3:, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -3:, :3], self.high)
        return F.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.skip(x))


@case
def _fno() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), _Spectral(), _Spectral(), nn.Conv2d(4, 1, 1))
    return model, lambda m: F.mse_loss(m(data(2, 2, 8, 8)), data(2, 1, 8, 8))


class _Hopfield(nn.Module):
    """Patterns kept as parameters, retrieved by a few updates until the state stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.patterns, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(10, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.query(x)
        for _ in range(5):
            new = (2.0 * state @ self.patterns.mT).softmax(-1) @ self.patterns
            moved = float((new - state).detach().abs().max())
            state = new
            if moved < 1e-3:
                break
        return self.out(state)


@case
def _hopfield() -> Case:
    return _Hopfield(), lambda m: F.cross_entropy(m(data(5, 6)), torch.randint(3, (5,)))


class _Memory(nn.Module):
    """A memory of keys and values that is written and read at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.key, self.write, self.out = nn.GRUCell(12, 8), nn.Linear(8, 4), nn.Linear(8, 6), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = x.new_zeros(len(x), 5, 6)
        h, read = x.new_zeros(len(x), 8), x.new_zeros(len(x), 6)
        keys = torch.eye(5, 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], read], -1), h)
            weight = (self.key(h) @ keys.mT).softmax(-1)
            memory = memory * (1 - weight[..., None]) + weight[..., None] * torch.tanh(self.write(h))[:, None]
            read = torch.einsum("bn,bnd->bd", weight, memory)
        return self.out(h)


@case
def _memory() -> Case:
    return _Memory(), lambda m: F.cross_entropy(m(data(4, 3, 6)), torch.randint(3, (4,)))


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g / (1 + (math.pi * u).square())


class _Leaky(nn.Module):
    """Leaky neurons with a surrogate gradient; the membrane is kept on the module, its reset is not followed."""

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.mem = nn.Parameter(torch.tensor(0.8)), None

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x) if self.mem is None else self.mem
        reset = (mem > 1).to(x.dtype).detach()
        self.mem = mem = self.beta.clamp(0, 1) * mem + x - reset
        return _Spike.apply(mem - 1)  # type: ignore[no-any-return]


class _Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lif, self.b, self.last = nn.Linear(6, 16), _Leaky(), nn.Linear(16, 3), _Leaky()
        with torch.no_grad():
            self.b.weight.mul_(8)  # so that the last neurons fire, too

    def forward(self, x: Tensor) -> Tensor:
        self.lif.mem = self.last.mem = None
        return torch.stack([self.last(self.b(self.lif(self.a(x)))) for _ in range(6)]).sum(0)


@case
def _spiking() -> Case:
    return _Spiking(), lambda m: F.cross_entropy(m(9 * data(5, 6)), torch.randint(3, (5,)))


class _Ode(nn.Module):
    """A neural ODE by Runge and Kutta's method, with a step width that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.f, self.out = (
            nn.Linear(6, 8),
            nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 8)),
            nn.Linear(8, 3),
        )

    def rate(self, t: float, h: Tensor) -> Tensor:
        return self.f(torch.cat([h, torch.full_like(h[:, :1], t)], -1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        h, t = self.inward(x), 0.0
        while t < 1.0:
            first = self.rate(t, h)
            d = min(1.0 - t, 0.5 if float(first.detach().abs().max()) < 5 else 0.25)
            second = self.rate(t + d / 2, h + d / 2 * first)
            third = self.rate(t + d / 2, h + d / 2 * second)
            fourth = self.rate(t + d, h + d * third)
            h, t = h + d / 6 * (first + 2 * second + 2 * third + fourth), t + d
        return self.out(h)


@case
def _ode() -> Case:
    return _Ode(), lambda m: F.cross_entropy(m(data(5, 6)), torch.randint(3, (5,)))


class _Quantized(nn.Module):
    """Training for quantization: observers of ranges, and rounding that the gradient passes straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("top", torch.tensor(0.0))

    def fake(self, x: Tensor, top: Tensor) -> Tensor:
        scale = float(top) / 127 + 1e-8
        return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.fake(self.a.weight, self.a.weight.detach().abs().max()), self.a.bias))
        if self.training:
            self.top.copy_(torch.maximum(self.top, h.detach().max()))
        h = h + (torch.round(h * 16) / 16 - h).detach()
        return F.linear(
            self.fake(h, self.top), self.fake(self.b.weight, self.b.weight.detach().abs().max()), self.b.bias
        )


@case
def _quantized() -> Case:
    return _Quantized(), lambda m: F.cross_entropy(m(data(5, 6)), torch.randint(3, (5,)))


@case
def _prototypes() -> Case:
    """A prototypical net: two calls, distances to means of classes."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))

    def loss(m: nn.Module) -> Tensor:
        support, query = m(data(9, 6)), m(data(6, 6))
        means = torch.stack([support[torch.arange(9) % 3 == i].mean(0) for i in range(3)])
        return F.cross_entropy(-torch.cdist(query, means).square(), torch.arange(6) % 3)

    return model, loss


class _Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.pairwise_distance(self.net(a), self.net(b))


@case
def _siamese() -> Case:
    def loss(m: nn.Module) -> Tensor:
        d, same = m(data(4, 2, 9), data(4, 2, 9)), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        return (same * d.square() + (1 - same) * (1 - d).clamp(min=0).square()).mean()

    return _Siamese(), loss


@case
def _physics() -> Case:
    """Second derivatives of the model by its input within the loss."""
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(m: nn.Module) -> Tensor:
        x = data(6, 2).requires_grad_()
        u = m(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)
        return (ddu[:, 0] - du[:, 1]).square().mean() + u.square().mean()

    return model, loss


class _Forces(nn.Module):
    """An energy of distances, and its gradient taken inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        i, j = torch.triu_indices(len(x), len(x), 1)
        energy = self.net((x[i] - x[j]).norm(dim=-1, keepdim=True)).sum()
        (grad,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -grad


@case
def _forces() -> Case:
    def loss(m: nn.Module) -> Tensor:
        energy, forces = m(data(5, 3))
        return energy.square() + F.mse_loss(forces, data(5, 3))

    return _Forces(), loss
