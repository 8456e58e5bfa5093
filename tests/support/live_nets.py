"""Networks for pictures, graphs, words and sound, as people build them by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .live_cases import Case, case, data


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


@case
def _unet() -> Case:
    return _UNet(), lambda m: F.cross_entropy(m(data(2, 3, 8, 8)), torch.randint(3, (2, 8, 8)))


@case
def _diffusion() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x, noise, t = data(2, 3, 8, 8), data(2, 3, 8, 8), torch.rand(2, dtype=torch.float64)
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


@case
def _detr() -> Case:
    def loss(m: nn.Module) -> Tensor:
        targets = [{"boxes": torch.rand(k, 4, dtype=torch.float64), "labels": torch.randint(3, (k,))} for k in (1, 3)]
        return m(data(2, 3, 16, 16), targets)["loss"]  # type: ignore[no-any-return]

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


@case
def _gat() -> Case:
    return _Gat(), lambda m: F.cross_entropy(m(data(7, 6), torch.randint(7, (2, 20))), torch.randint(3, (7,)))


@case
def _gin() -> Case:
    def loss(m: nn.Module) -> Tensor:
        graph = torch.tensor([0, 0, 0, 1, 1, 2, 2])
        return F.cross_entropy(m(data(7, 6), torch.randint(7, (2, 20)), graph), torch.randint(3, (3,)))

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


@case
def _vae() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = data(5, 12)
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


@case
def _actor_critic() -> Case:
    def loss(m: nn.Module) -> Tensor:
        policy, value = m(data(8, 6))
        action, gain = policy.sample(), data(8)
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


@case
def _experts() -> Case:
    model = nn.Sequential(nn.Linear(6, 8), _Experts(), nn.Linear(8, 3))
    return model, lambda m: F.cross_entropy(m(data(9, 6)), torch.randint(3, (9,)))


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


@case
def _wavenet() -> Case:
    def loss(m: nn.Module) -> Tensor:
        x = torch.randint(16, (2, 20))
        return F.cross_entropy(m(x)[:, :, :-1], x[:, 1:])

    return _WaveNet(), loss


@case
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


@case
def _packed() -> Case:
    return _Packed(), lambda m: m(data(3, 8, 6), torch.tensor([5, 8, 6]), torch.randint(1, 5, (3, 2)))
