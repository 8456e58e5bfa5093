"""Copies, errors, and modules called otherwise."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle

import torch
from torch import nn

import lfpgraph

from .table import case, data, loss_of, mlp, train

# Copies, pickles, unwrapping


def _wrapped(model: nn.Module) -> bool:
    return lfpgraph.is_wrapped(model)


def copied(how):
    def build():
        current: list[nn.Module] = []

        def step(model, i):
            was = _wrapped(current[0] if current else model)
            current[:] = [how(current[0] if current else model)]
            assert _wrapped(current[0]) == was
            for p in current[0].parameters():
                p.grad = None
            out = train(current[0], data(5, 6))
            return out, [p.grad for p in current[0].parameters()]

        return nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3)), step

    return build


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


for _name, _how in (
    ("deepcopied", copy.deepcopy),
    ("pickled", lambda m: pickle.loads(pickle.dumps(m))),
    ("saved_and_loaded", _saved),
    ("shallow_copied", copy.copy),
):
    _build = copied(_how)
    _build.__name__ = _name
    case()(_build)


@case(static=True)
def unwrapped_in_the_middle():
    """unwrap after the first step, wrap again after the second."""

    def step(model, i):
        if i == 1 and _wrapped(model):
            lfpgraph.unwrap(model)
            model.was = True
        elif i == 2 and getattr(model, "was", False):
            lfpgraph.wrap(model, "gradient")
        return train(model, data(5, 6))

    return mlp(6, 8, 3), step


@case()
def unwrapped_before_backward():
    """unwrap between forward and backward."""

    def step(model, i):
        out = model(data(5, 6))
        if i == 1 and _wrapped(model):
            lfpgraph.unwrap(model)
        loss_of(out).backward()
        return out

    return mlp(6, 8, 3), step


# Errors


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.error: BaseException | None = None

    def forward(self, x):
        h = self.a(x).relu()
        if self.error is not None:
            raise self.error
        return self.b(h)


@case()
def errors_inside():
    """An exception in forward, a KeyboardInterrupt, an error of torch's own; the next step is as ever."""

    def step(model, i):
        before = model(data(5, 6))
        for error in (ValueError("no"), KeyboardInterrupt(), GeneratorExit()):
            model.error = error
            with contextlib.suppress(type(error)):
                model(data(5, 6))
        model.error = None
        with contextlib.suppress(RuntimeError):
            model(data(5, 7))
        out = train(model, data(5, 6))
        loss_of(before).backward()
        return before, out, nn.functional.linear(data(2, 6), model.a.weight)

    return Failing(), step


@case()
def error_caught_inside():
    """forward tries one way, fails, and takes another."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            try:
                h = self.b(self.a(x)).view(-1, 7)
            except RuntimeError:
                h = self.b(self.a(x).relu())
            return h

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case(static=True)
def error_in_backward():
    """A hook raises during backward; the next step is as ever."""

    def step(model, i):
        out = model(data(5, 6))

        def fail(g):
            raise ValueError("no")

        handle = out.register_hook(fail)
        with contextlib.suppress(ValueError):
            loss_of(out).backward()
        handle.remove()
        return train(model, data(5, 6))

    return mlp(6, 8, 3), step


# Modules called otherwise


@case(same=True)
def nested_wraps():
    """A wrapped model inside another model that is wrapped."""
    inner = mlp(6, 8, 8)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.inner(x).relu())

    def step(model, i):
        return train(model, data(5, 6))

    return Outer(), step


@case(static=True)
def parts_called_alone():
    """The training step calls parts by themselves, in another order."""

    def step(model, i):
        h = model[0](data(5, 6))
        out = model[1](h.relu())
        loss_of(out).backward()
        return out

    return nn.Sequential(mlp(6, 8, 8), nn.Linear(8, 3)), step


@case(same=True)
def another_method():
    """A method other than forward calls parts; forward calls a method."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(6, 8, 4), mlp(4, 8, 6)

        def encode(self, x):
            return self.encoder(x).tanh()

        def forward(self, x):
            return self.decoder(self.encode(x))

    def step(model, i):
        z = model.encode(data(5, 6))
        out = model(data(5, 6, seed=3))
        loss_of([model.decoder(z), out]).backward()
        return z, out

    return Model(), step


@case()
def recursive():
    """A module that calls itself."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x, depth=3):
            x = self.layer(x).tanh()
            return self(x, depth - 1) if depth else x

    def step(model, i):
        return train(model, data(5, 6), depth=i)

    return Model(), step
