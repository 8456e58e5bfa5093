"""Small models of many kinds, each with the loss of one step: what people build by hand and what other libraries hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELS"]

Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]
MODELS: dict[str, Callable[[], Case]] = {}


def _case(make: Callable[[], Case]) -> Callable[[], Case]:
    MODELS[make.__name__.strip("_")] = make
    return make


def _data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class _UNet(nn.Module):
    """Two levels; time embedding and attention at the bottom, as in diffusion models, where `attends`."""

    def __init__(self, attends: bool = False) -> None:
        super().__init__()
        self.inward, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.middle, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.up, self.merge, self.out = nn.Upsample(scale_factor=2), nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True) if attends else None
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16)) if attends else None

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        high = F.silu(self.inward(x))
        low = F.silu(self.norm(self.middle(F.silu(self.down(high)))))
        if self.attention is not None and self.time is not None and t is not None:
            angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(4, dtype=x.dtype) / 4)
            low = low + self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
            tokens = low.flatten(2).mT
            low = low + self.attention(tokens, tokens, tokens, need_weights=False)[0].mT.reshape(low.shape)
        return self.out(F.silu(self.merge(torch.cat([self.up(low), high], 1))))


@_case
def _unet() -> Case:
    return _UNet(), lambda m: F.cross_entropy(m(_data(2, 3, 8, 8)), torch.randint(3, (2, 8, 8)))


@_case
def _diffusion() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x, noise, t = _data(2, 3, 8, 8), _data(2, 3, 8, 8), torch.rand(2, dtype=torch.float64)
        return F.mse_loss(m(x * (1 - t)[:, None, None, None] + noise * t[:, None, None, None], t * 1000), noise)

    return _UNet(attends=True), loss


class _Detr(nn.Module):
    """Queries that a decoder layer fills; the loss matches them to boxes by cost, within forward."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.queries = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(5, 16))
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.classes, self.boxes = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Any]:
        tokens = self.backbone(x).flatten(2).mT
        h = self.decoder(self.queries.expand(len(x), -1, -1), tokens)
        logits, boxes = self.classes(h), self.boxes(h).sigmoid()
        loss = torch.zeros((), dtype=x.dtype)
        for i, target in enumerate(targets):
            with torch.no_grad():
                cost = torch.cdist(boxes[i], target["boxes"], p=1) - logits[i].softmax(-1)[:, target["labels"]]
            free, wanted = list(range(5)), torch.full((5,), 3)
            for j in range(len(target["labels"])):
                best = min(free, key=lambda q: float(cost[q, j]))
                free.remove(best)
                wanted[best] = target["labels"][j]
                loss = loss + F.l1_loss(boxes[i, best], target["boxes"][j])
            loss = loss + F.cross_entropy(logits[i], wanted)
        return {"loss": loss, "logits": logits}


@_case
def _detr() -> Case:
    def loss(m: nn.Module) -> Tensor:
        targets = [{"boxes": torch.rand(k, 4, dtype=torch.float64), "labels": torch.randint(3, (k,))} for k in (1, 3)]
        return m(_data(2, 3, 16, 16), targets)["loss"]  # type: ignore[no-any-return]

    return _Detr(), loss


class _Gat(nn.Module):
    """Attention over a list of edges: softmax by scatter, sums by index_add and scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.source, self.target = nn.Linear(6, 8), nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x)
        a, b = edges
        score = F.leaky_relu((h @ self.source)[a] + (h @ self.target)[b], 0.2)
        top = torch.full((len(x),), -torch.inf, dtype=x.dtype).scatter_reduce(0, b, score.detach(), "amax")
        weight = (score - top[b]).exp()
        total = torch.zeros(len(x), dtype=x.dtype).scatter_add(0, b, weight)
        messages = h[a] * (weight / (total[b] + 1e-16))[:, None]
        return self.out(F.elu(torch.zeros_like(h).index_add(0, b, messages)))


class _Gin(nn.Module):
    """Sums over neighbours, written in place, and a mean for each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(0.1))
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        near = torch.zeros_like(x)
        near.index_add_(0, edges[1], x[edges[0]])
        h = self.mlp((1 + self.eps) * x + near)
        many = int(graph.max()) + 1
        count = torch.bincount(graph, minlength=many).clamp(min=1)
        return h.new_zeros(many, 3).scatter_add_(0, graph[:, None].expand_as(h), h) / count[:, None]


@_case
def _gat() -> Case:
    return _Gat(), lambda m: F.cross_entropy(m(_data(7, 6), torch.randint(7, (2, 20))), torch.randint(3, (7,)))


@_case
def _gin() -> Case:
    def loss(m: nn.Module) -> Tensor:
        graph = torch.tensor([0, 0, 0, 1, 1, 2, 2])
        return F.cross_entropy(m(_data(7, 6), torch.randint(7, (2, 20)), graph), torch.randint(3, (3,)))

    return _Gin(), loss


class _Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.encoder(x).chunk(2, -1)
        posterior = torch.distributions.Normal(mean, log_std.exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return self.decoder(posterior.rsample()), torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()


@_case
def _vae() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = _data(5, 12)
        again, divergence = m(x)
        return F.mse_loss(again, x) + 0.1 * divergence

    return _Vae(), loss


class _ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        h = torch.tanh(self.body(x))
        return torch.distributions.Categorical(logits=self.actor(h)), self.critic(h).squeeze(-1)


@_case
def _actor_critic() -> Case:
    def loss(m: nn.Module) -> Tensor:
        policy, value = m(_data(8, 6))
        action, gain = policy.sample(), _data(8)
        advantage = gain - value.detach()
        return -(policy.log_prob(action) * advantage).mean() + F.mse_loss(value, gain) - 0.01 * policy.entropy().mean()

    return _ActorCritic(), loss


class _Experts(nn.Module):
    """Top-2 routing; each expert takes its tokens by index, and those that get none are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            if len(token):
                out.index_add_(0, token, expert(x.index_select(0, token)) * weight[token, slot, None])
        return x + out


@_case
def _experts() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), _Experts(), nn.Linear(8, 3))
    return model, lambda m: F.cross_entropy(m(_data(9, 6)), torch.randint(3, (9,)))


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


@_case
def _flow() -> Case:
    def loss(m: nn.Module) -> Tensor:
        z, logdet = m(_data(8, 6))
        return (0.5 * z.square().sum(-1) - logdet).mean()

    return _Flow(), loss


class _WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.out = nn.Conv1d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).mT
        skips: Any = 0
        for i, (gate, residual, skip) in enumerate(zip(self.gates, self.residual, self.skip)):
            a, b = gate(F.pad(h, (2**i, 0))).chunk(2, 1)
            z = torch.tanh(a) * torch.sigmoid(b)
            skips = skips + skip(z)
            h = h + residual(z)
        return self.out(F.relu(skips))  # type: ignore[no-any-return]


@_case
def _wavenet() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = torch.randint(16, (2, 20))
        return F.cross_entropy(m(x)[:, :, :-1], x[:, 1:])

    return _WaveNet(), loss


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


@_case
def _fno() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), _Spectral(), _Spectral(), nn.Conv2d(4, 1, 1))
    return model, lambda m: F.mse_loss(m(_data(2, 2, 8, 8)), _data(2, 1, 8, 8))


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


@_case
def _hopfield() -> Case:
    return _Hopfield(), lambda m: F.cross_entropy(m(_data(5, 6)), torch.randint(3, (5,)))


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


@_case
def _memory() -> Case:
    return _Memory(), lambda m: F.cross_entropy(m(_data(4, 3, 6)), torch.randint(3, (4,)))


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


@_case
def _spiking() -> Case:
    return _Spiking(), lambda m: F.cross_entropy(m(9 * _data(5, 6)), torch.randint(3, (5,)))


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


@_case
def _ode() -> Case:
    return _Ode(), lambda m: F.cross_entropy(m(_data(5, 6)), torch.randint(3, (5,)))


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


@_case
def _quantized() -> Case:
    return _Quantized(), lambda m: F.cross_entropy(m(_data(5, 6)), torch.randint(3, (5,)))


@_case
def _prototypes() -> Case:
    """A prototypical net: two calls, distances to means of classes."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))

    def loss(m: nn.Module) -> Tensor:
        support, query = m(_data(9, 6)), m(_data(6, 6))
        means = torch.stack([support[torch.arange(9) % 3 == i].mean(0) for i in range(3)])
        return F.cross_entropy(-torch.cdist(query, means).square(), torch.arange(6) % 3)

    return model, loss


class _Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.pairwise_distance(self.net(a), self.net(b))


@_case
def _siamese() -> Case:
    def loss(m: nn.Module) -> Tensor:
        d, same = m(_data(4, 2, 9), _data(4, 2, 9)), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        return (same * d.square() + (1 - same) * (1 - d).clamp(min=0).square()).mean()

    return _Siamese(), loss


@_case
def _physics() -> Case:
    """Second derivatives of the model by its input within the loss."""
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(m: nn.Module) -> Tensor:
        x = _data(6, 2).requires_grad_()
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


@_case
def _forces() -> Case:
    def loss(m: nn.Module) -> Tensor:
        energy, forces = m(_data(5, 3))
        return energy.square() + F.mse_loss(forces, _data(5, 3))

    return _Forces(), loss


class _Frozen(nn.Module):
    """A head on features of an encoder that runs under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = F.relu(self.encoder(x))
        return self.head(h)


@_case
def _frozen() -> Case:
    return _Frozen(), lambda m: F.cross_entropy(m(_data(5, 6)), torch.randint(3, (5,)))


class _Codes(nn.Module):
    """A vector-quantized autoencoder: the nearest code, straight through, with a commitment loss kept on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.codes = nn.Linear(6, 4), nn.Linear(4, 6), nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        code = self.codes(torch.cdist(h, self.codes.weight).argmin(-1))
        self.commitment = F.mse_loss(h, code.detach()) + F.mse_loss(code, h.detach())
        return self.decoder(h + (code - h).detach())


@_case
def _codes() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = _data(5, 6)
        return F.mse_loss(m(x), x) + m.commitment

    return _Codes(), loss


@_case
def _transformer() -> Case:
    """torch's own layers with masks, tied embeddings."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.layers = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
            )
            self.head = nn.Linear(8, 16)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=torch.float64)
            return self.head(self.layers(self.embed(x), mask=causal))

    def loss(m: nn.Module) -> Tensor:
        x = torch.randint(16, (2, 7))
        return F.cross_entropy(m(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    return Net(), loss


class _Packed(nn.Module):
    """A packed sequence through an LSTM, and CTC inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 8, bidirectional=True, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        scores = self.out(h).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, targets, lengths, torch.full((len(x),), 2))


@_case
def _packed() -> Case:
    return _Packed(), lambda m: m(_data(3, 8, 6), torch.tensor([5, 8, 6]), torch.randint(1, 5, (3, 2)))
