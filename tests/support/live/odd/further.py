"""Kinds of Python that were wrong or refused when they were first tried."""

from __future__ import annotations

import types
import warnings

import torch
from torch import nn

from ..table import case, data, loss_of, train


class Parts(nn.Module):
    """Two linear layers, and whatever stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)


@case(same=True, often=False)
def old_norms():
    """Weights that hooks make of others before each call, with a power iteration under no_grad."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = (
            nn.utils.weight_norm(nn.Linear(6, 8)),
            nn.Tanh(),
            nn.utils.spectral_norm(nn.Linear(8, 3)),
            nn.Linear(3, 3),
        )
    return nn.Sequential(*layers), lambda model, i: train(model, data(5, 6, seed=i))


@case(static=True, same=True, often=False)
def operators_in_place():
    """Python's operators that write, a power among them."""

    class Model(Parts):
        def forward(self, x):
            h = self.a(x)
            h += 1
            h **= 2
            h /= 2
            h[:, ::2] *= 2
            h[1:3] += h[0]
            return self.b(h % 0.7 + h)

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))


@case(static=True, same=True, often=False)
def written_after_its_mask():
    """A value that was multiplied with a mask made of it is written to, as a whole and through a view."""

    class Model(Parts):
        def forward(self, x):
            h = self.a(x)
            k = (h > 0) * h
            h.add_(1)
            j = (h > 0.2).to(h.dtype) * h.view(-1, 8)
            h.view(-1)[::2].mul_(2)
            return self.b(k + j) + self.b(h)

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))


@case(static=True, same=True, often=False)
def sparse_gradients():
    """An embedding whose gradient is sparse."""

    class Model(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 6, sparse=True)

        def forward(self, ids):
            return self.b(self.a(self.table(ids).mean(1)))

    def step(model, i):
        return train(model, torch.randint(0, 10, (5, 4), generator=torch.Generator().manual_seed(i)))

    return Model(), step


@case(static=True, often=False)
def namespace_returned():
    """An object whose dict may not be replaced."""

    class Model(Parts):
        def forward(self, x):
            h = self.a(x)
            return types.SimpleNamespace(hidden=[h], out=self.b(h.relu()))

    def step(model, i):
        found = model(data(5, 6, seed=i))
        loss_of([found.out, *found.hidden]).backward()
        return found.out, found.hidden

    return Model(), step


@case(often=False)
def hook_that_removes_itself():
    """The first call registers a hook that changes its result and is gone after it."""

    class Model(Parts):
        first = True

        def forward(self, x):
            if self.first:
                self.first = False
                self.handle = self.b.register_forward_hook(self.treble)
            return self.b(self.a(x).relu())

        def treble(self, module, args, out):
            self.handle.remove()
            return out * 3

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))


@case(often=False)
def cut_off_in_place():
    """What a step has left is detached in place before the next one reads it, and an activation in the middle, too."""

    class Model(Parts):
        state = None

        def forward(self, x):
            if self.state is not None:
                self.state.detach_()
            h = self.a(x)
            k = self.a(x + 1)
            k.detach_()
            self.state = self.b(h.relu() + k * self.a.bias) + (0 if self.state is None else 0.5 * self.state)
            return self.state

    return Model(), lambda model, i: train(model, data(5, 6, seed=i))
