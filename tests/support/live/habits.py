"""What models do with values that have no gradient in plain PyTorch and carry reward here: masks, choices, spikes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .table import case, data, mlp, train


class Codes(nn.Module):
    """Vector quantisation whose statistics are taken with gradients on, as in the best-known code for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.codes = nn.Linear(6, 4), nn.Linear(4, 3), nn.Embedding(5, 4)
        self.register_buffer("size", torch.zeros(5))
        self.register_buffer("count", torch.zeros(5))

    def forward(self, x):
        z = self.a(x)
        ids = torch.cdist(z, self.codes.weight).argmin(-1)
        taken = F.one_hot(ids, 5).type(z.dtype)
        self.size = 0.9 * self.size + 0.1 * taken.sum(0)
        self.count.mul_(0.9).add_(taken.sum(0)).index_add_(0, ids, torch.ones(len(ids)))
        found = taken @ self.codes.weight
        return self.b(z + (found - z).detach()), (taken.numpy() > 0).sum(), self.size.requires_grad


@case(says=("codes.weight",))
def one_hot_codes():
    """The number of uses of each code is kept in buffers, and numpy looks at the choice. Nothing trains the codes, as is said."""

    def step(model, i):
        out, *seen = model(data(7, 6, seed=i))
        ((out - 0.3) ** 2).mean().backward()
        return out, seen, model.count.requires_grad

    return Codes(), step


@case(static=True, same=True)
def chosen_straight_through():
    """`gumbel_softmax(hard=True)`, which scatters ones into zeros in place."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(F.gumbel_softmax(self.a(x), tau=0.5, hard=True))

    return Model(), lambda model, i: train(model, data(5, 6))


class Spikes(nn.Module):
    """Thresholds without a derivative, written into tensors in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x):
        spikes = torch.zeros(3, len(x), 4)
        total = torch.zeros(len(x), 4)
        for t in range(3):
            spikes[t] = (self.a(x) > 0.1 * t).to(x.dtype)
            total += 0.5 * spikes[t]
            total[:, 0].mul_(0.5)
        first, rest = spikes[0], spikes[1:]
        fired = rest.masked_fill_(rest > 2, 1.0).mean(0)
        return self.c(torch.cat([self.b(first * total).relu() + fired, total * self.b(fired)], 1))


@case(lfp=False, same=True)  # feedback reaches what has no gradient
def spikes_written():
    """A tensor of spikes is filled step by step; sums of spikes are kept in place."""
    return Spikes(), lambda model, i: train(model, data(5, 6))


@case(same=True)
def masks_among_outputs():
    """A mask is multiplied in place with what has a gradient, and from then on has one."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = mlp(6, 8, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x)
            mask = (h > 0).to(h.dtype)
            seen = mask.requires_grad
            mask.mul_(h.sigmoid())
            return self.b(mask * h), seen, mask.requires_grad

    def step(model, i):
        out, *seen = model(data(5, 6))
        ((out - 0.3) ** 2).mean().backward()
        return out, seen

    return Model(), step


class Statistics(nn.Module):
    """A batch norm written out, which keeps its statistics and returns them; a mask is returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(data(6, seed=2))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        h = self.a(x)
        mean = h.mean(0, keepdim=True)
        var = (h - mean).pow(2).mean(0, keepdim=True)
        with torch.no_grad():
            self.mean.lerp_(mean[0], 0.1)
        self.var.mul_(0.9).add_(0.1 * var.detach()[0])
        h = (h - mean) / (var + 1e-5).sqrt() * self.scale
        mask = (h > 0).to(h.dtype)
        return self.b(h * mask), mean.detach(), mask > 0


@case(static=True, same=True)
def statistics_kept():
    """What is read besides for outputs without reward does not part what is one function."""

    def step(model, i):
        out, *seen = model(data(5, 6, seed=i))
        ((out - 0.3) ** 2).mean().backward()
        return out, seen

    return Statistics(), step


@case(static=True, same=True)
def scores_left_out():
    """All scores but the best are minus infinity, in a mask that is added."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            mask = torch.full_like(h, float("-inf")).scatter_(1, h.topk(3).indices, 0.0)
            return self.b((h + mask).softmax(-1))

    return Model(), lambda model, i: train(model, data(5, 6))


@case(static=True, same=True)
def masks_written_to():
    """Masks in parts that are written to, through `out=`, and inside a checkpoint."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def kept(self, x):
            h = self.a(x)
            mask = (h > 0).to(h.dtype)
            mask *= 0.5
            return h * mask + mask

        def forward(self, x):
            h = checkpoint(self.kept, x, use_reentrant=False)
            mask = (h > 0.1).to(h.dtype)
            left, right = mask.chunk(2, 1)
            left.mul_(2)
            right += 1
            twice = torch.empty(0)
            torch.add(mask, mask, out=twice)
            return self.b(h * mask + twice)

    return Model(), lambda model, i: train(model, data(5, 6))


class Rerun(nn.Module):
    """A checkpoint of a batch norm and dropout, and of masks that were made outside of it."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, x):
        z = self.a(x)
        mask, places, above = (z > 0).to(z.dtype), z.argsort(-1), z > 0.1

        def part(y, given):
            return self.norm(self.b(y)).relu() * mask * above.to(y.dtype) + y.gather(-1, places) * given

        return self.c(checkpoint(part, z, mask, use_reentrant=False))


@case(same=True)
def masks_for_a_checkpoint():
    """Reward goes on from masks to what they were made of, so autograd saves more; it must do so when the part runs again."""
    return Rerun(norm=False), lambda model, i: train(model, data(5, 6, seed=i))


@case(often=False)
def norm_in_a_checkpoint():
    """Its statistics are written a second time in the backward pass."""
    return Rerun(norm=True), lambda model, i: train(model, data(5, 6, seed=i))


class Carries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        z = self.a(x)
        self.mean = 0.5 * self.mean.detach() + z.mean(0)
        return self.b(z.relu() * self.mean)


@case()
def buffer_with_a_history():
    """A loss of a buffer, which forward has assigned; the one before is another tensor and stays as it is."""

    def step(model, i):
        before = model.mean
        out = model(data(5, 6, seed=i))
        (((out - 0.3) ** 2).mean() + model.mean.square().sum()).backward()
        return out, before, model.mean

    return Carries(), step


@case()
def draws_in_place_that_nobody_reads():
    """Each later draw depends on them, and torch's own trace leaves them out."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            torch.empty(3).exponential_()
            return self.b(F.dropout(self.a(x).relu(), 0.3)), torch.rand(2)

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))


class Hands(nn.Module):
    """Returns a value twice, with and without its history; and, if it is asked to, the statistics that it keeps."""

    def __init__(self, statistics: bool) -> None:
        super().__init__()
        self.a, self.b, self.statistics = nn.Linear(6, 8), nn.Linear(8, 3), statistics
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        z = self.a(x)
        self.mean.lerp_(z.detach().mean(0), 0.1)
        out = self.b(z.relu())
        return (out, self.mean) if self.statistics else (out, out, out.detach(), out[0])


@case(static=True)
def a_value_and_its_detached():
    def step(model, i):
        out = train(model, data(5, 6, seed=i))
        return out, [x.requires_grad for x in out], out[0] is out[1], out[0].data_ptr() == out[2].data_ptr()

    return Hands(False), step


@case(often=False)
def a_buffer_returned_and_written_later():
    """The result of the first call changes with the second one."""
    before = []

    def step(model, i):
        before.append(train(model, data(5, 6, seed=i))[1])
        return [x.clone() for x in before[-2:]]

    return Hands(True), step
