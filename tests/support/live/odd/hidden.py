"""Modules that hide what they are made of, and what forward reads besides its arguments."""

from __future__ import annotations

import contextvars
import enum
import functools
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ..table import case, data, loss_of, mlp, train


class Hidden(nn.Module):
    """A module that makes its weight by a property, ties by a property, and hides its parts from `modules()`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.raw = nn.Parameter(data(6, 6, seed=3))
        object.__setattr__(self, "shadowed", nn.Linear(6, 6))

    @property
    def weight(self):
        return self.raw / self.raw.norm()

    @property
    def head(self):
        return functools.partial(F.linear, weight=self.embed.weight)

    def __getattr__(self, name):
        if name == "doubled":
            return self.weight * 2
        return super().__getattr__(name)

    def forward(self, ids):
        h = self.embed(ids) @ self.weight
        return self.head(self.shadowed(h).tanh() @ self.doubled)


@case(often=False)
def weights_by_property():
    """Weights made and tied by properties and __getattr__; a part that modules() does not know."""

    def step(model, i):
        for p in model.shadowed.parameters():
            p.grad = None
        out = train(model, (torch.arange(6).view(2, 3) + i) % 9)
        return out, [p.grad for p in model.shadowed.parameters()]

    return Hidden(), step


class Kind(enum.Enum):
    FIRST = "first"
    SECOND = "second"


class Dispatching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({k.value: nn.Linear(6, 6) for k in Kind})
        self.scales = nn.ParameterDict({k.value: nn.Parameter(data(6, seed=len(k.value))) for k in Kind})
        self.head = nn.Linear(6, 3)

    @functools.singledispatchmethod
    def read(self, x):
        raise TypeError(type(x))

    @read.register
    def _(self, x: Tensor):
        return x

    @read.register
    def _(self, x: list):
        return torch.stack([self.read(item) for item in x]).sum(0)

    def forward(self, x, kind):
        x = self.read(x)
        match kind:
            case Kind.FIRST:
                x = self.parts[kind.value](x).relu()
            case _:
                x = self.parts[kind.value](x).tanh()
        for name in self.scales:
            x = x * self.scales[name] + x.mean()
        w = self.scales.pop("first")
        self.scales["first"] = w
        return self.head(x)


@case(often=False)
def order_of_parameters_changes():
    """Dispatch by type and enum; the order of a ParameterDict changes in each call."""

    def step(model, i):
        x = data(5, 6, seed=i)
        return train(model, [x, [x, x]] if i == 1 else x, Kind.FIRST if i % 2 else Kind.SECOND)

    return Dispatching(), step


DEPTH: contextvars.ContextVar[int] = contextvars.ContextVar("DEPTH", default=1)
LOCAL = threading.local()


class Contextual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        for _ in range(DEPTH.get()):
            x = self.layer(x).tanh() * getattr(LOCAL, "scale", 1.0)
        return self.head(x)


@case(often=False)
def context_variables():
    """Depth by a context variable, scale by a thread's own state."""

    def step(model, i):
        token = DEPTH.set(1 + i)
        LOCAL.scale = 1.0 + i
        try:
            return train(model, data(5, 6, seed=i))
        finally:
            DEPTH.reset(token)
            del LOCAL.scale

    return Contextual(), step


class Loads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        loader = DataLoader(TensorDataset(x), batch_size=2, shuffle=True)
        return self.head(torch.cat([self.layer(part).relu() for (part,) in loader]))


@case(often=False)
def data_loader_inside():
    """A shuffled DataLoader inside forward."""
    return Loads(), lambda model, i: train(model, data(5, 6, seed=i))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp(6, 8, 3)
        self.kept: dict[int, Any] = {}

    def forward(self, x):
        if id(x) not in self.kept:
            self.kept = {id(x): (self.layer(x), x)}
        return self.kept[id(x)][0]


@case(often=False)
def outputs_cached():
    """The second call with the same tensor gives the first one's output again."""

    def step(model, i):
        x = data(5, 6, seed=i)
        first, second = model(x), model(x)
        assert first is second
        (loss_of(first) + second.mean()).backward()
        return first

    return Remembers(), step


class Boxed:
    """No tensor, but what torch's functions take for one."""

    def __init__(self, tensor, scale) -> None:
        self.tensor, self.scale = tensor, scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = [a for a in args if isinstance(a, cls)]
        plain = [a.tensor * a.scale if isinstance(a, cls) else a for a in args]
        return cls(func(*plain, **(kwargs or {})), found[0].scale)


class Duck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        box = Boxed(x, 0.5)
        h = torch.tanh(F.linear(box, self.layer.weight, self.layer.bias))
        return self.head(h.tensor)


@case(often=False)
def objects_that_act_as_tensors():
    """An object with __torch_function__ that is no tensor."""
    return Duck(), lambda model, i: train(model, data(5, 6, seed=i))


class Truncated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 8), nn.Linear(8, 3)
        self.state: Any = None
        self.count = 0

    def forward(self, x):
        self.count += 1
        self.state = self.cell(x, self.state)
        return self.head(self.state[0])


@case(often=False)
def truncated_in_time():
    """The state is kept over three calls and cut off by the caller; one backward for all, through time."""

    def step(model, i):
        outs = [model(data(5, 6, seed=5 * i + j)) for j in range(3)]
        loss_of(outs).backward()
        model.state = tuple(s.detach() for s in model.state)
        model.state[0].mul_(0.9)
        return outs

    return Truncated(), step
