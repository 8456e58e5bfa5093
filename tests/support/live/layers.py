"""Larger layers of torch, compiled models, and models that make their own tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .table import case, data, loss_of, mlp, train


@case()
def transformer_encoder():
    """TransformerEncoder with a padding mask, in train and eval mode."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 2)

    def step(model, i):
        model.train(i != 1)
        mask = torch.tensor([[False] * 4, [False, False, True, True]])
        return train(model, data(2, 4, 8), src_key_padding_mask=mask)

    return model, step


@case(same=True)
def attention():
    """MultiheadAttention with a causal mask and weights, and scaled_dot_product_attention."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            h, weights = self.mha(x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))
            q = h.unflatten(-1, (2, 4)).transpose(1, 2)
            return self.head(
                F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).flatten(2)
            ), weights

    def step(model, i):
        return train(model, data(2, 3 + i, 8))

    return Model(), step


@case(same=True)
def upsampled():
    """Convolutions, batch norm, pooling with indices, nearest and bilinear upsampling, of changing sizes."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.up, self.b = nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 2, 2)

        def forward(self, x):
            h, where = F.max_pool2d(F.relu(self.norm(self.a(x)), inplace=True), 2, return_indices=True)
            h = F.max_unpool2d(h, where, 2) + self.up(h)
            return self.b(F.interpolate(h, size=(5, 5), mode="bilinear", align_corners=False))

    def step(model, i):
        return train(model, data(2 + i, 1, 4 + 2 * i, 4))

    return Model(), step


@case()
def embeddings():
    """EmbeddingBag, a sparse embedding, max_norm."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.sparse = nn.EmbeddingBag(9, 6, mode="mean"), nn.Embedding(9, 6, sparse=True)
            self.limited, self.head = nn.Embedding(9, 6, max_norm=1.0), nn.Linear(6, 3)

        def forward(self, ids):
            return self.head(self.bag(ids) + self.sparse(ids).sum(1) + self.limited(ids[:, 0]))

    def step(model, i):
        return train(model, torch.tensor([[1, 2, 3], [3, 4, 8]]) - i % 2)

    return Model(), step


@case()
def experts():
    """A mixture of experts by hand: rows chosen by value, experts without rows, results added in place."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(mlp(6, 8, 6) for _ in range(4))

        def forward(self, x):
            weights, chosen = self.gate(x).softmax(-1).topk(2)
            out = torch.zeros_like(x)
            for e, expert in enumerate(self.experts):
                rows, place = torch.where(chosen == e)
                if len(rows):
                    out.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
            return out

    def step(model, i):
        return train(model, data(3 + i, 6, seed=i))

    return Model(), step


@case(static=True)
def compiled():
    """torch.compile of the wrapped model, with the eager backend: what runs is the model as it is wrapped."""
    kept: dict[int, nn.Module] = {}

    def step(model, i):
        if id(model) not in kept:
            torch._dynamo.reset()
            kept[id(model)] = torch.compile(model, backend="eager")
        return train(kept[id(model)], data(4 + i, 6))

    return mlp(6, 8, 3), step


@case()
def compiled_inside():
    """A compiled function inside forward."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch._dynamo.reset()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.gelu = torch.compile(lambda x: x * torch.sigmoid(x), backend="eager")

        def forward(self, x):
            return self.b(self.gelu(self.a(x)))

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case(static=True, same=True)
def saved_tensor_hooks():
    """Saved tensors packed away by hooks, as offloading does."""

    def step(model, i):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), lambda a: torch.from_numpy(a)):
            out = model(data(5, 6).requires_grad_())
        loss_of(out).backward()
        return out

    return mlp(6, 8, 8, 3), step


@case()
def subclass_and_default_device():
    """A torch function mode inside forward, and a tensor subclass as input and as what is made of it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            with torch.device("cpu"):
                return self.layer((x * 2).as_subclass(torch.Tensor)) + torch.ones(3)

    class Tagged(torch.Tensor):
        pass

    def step(model, i):
        x = data(5, 6)
        return train(model, x.as_subclass(Tagged) if i else x)

    return Model(), step


@case()
def numpy_inside():
    """Values taken to numpy and back, tolist, item, as constants."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.layer(x)
            far = torch.from_numpy(h.detach().numpy().argsort(0))
            near = torch.tensor(h[0].tolist())
            return self.head(h.gather(0, far) + near * h.max().item())

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case()
def made_from_text():
    """forward takes words and numbers of Python and makes its tensors itself."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 6), nn.Linear(6, 3)

        def forward(self, words):
            ids = torch.tensor([[ord(c) - 97 for c in word] for word in words])
            return self.head(self.embed(ids).mean(1).tanh())

    def step(model, i):
        return train(model, ["ab", "cd", "xy"][: i + 1])

    return Model(), step


@case()
def coordinates_in_a_buffer():
    """A field over coordinates that lie in a buffer; forward takes nothing."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", torch.linspace(-1, 1, 8)[:, None])
            self.a, self.b = nn.Linear(1, 8), nn.Linear(8, 2)

        def forward(self):
            return self.b(torch.sin(3 * self.a(self.grid)))

    def step(model, i):
        return train(model)

    return Model(), step


@case(static=True, same=True)
def entries_set_to_numbers():
    """Rows and columns of an activation are set to numbers, and to a number that a tensor holds."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            h[1] = 0.25
            h[:, 2] = h[0, 0]
            h.t()[4] = 0.5
            h[2].fill_(x[0, 0])
            return self.b(h.relu())

    return Model(), lambda model, i: train(model, data(5, 6))
