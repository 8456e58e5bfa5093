"""Python around modules: coroutines, generators, outputs of every kind, arguments that are written to."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..table import case, data, loss_of, train


class Coroutine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    async def branch(self, layer, x):
        h = layer(x)
        await asyncio.sleep(0)
        return h.relu() + layer(h)

    async def gather(self, x):
        return await asyncio.gather(self.branch(self.a, x), self.branch(self.b, x))

    def forward(self, x):
        left, right = asyncio.run(self.gather(x))
        return self.head(left * right)


@case(often=False)
def coroutines():
    """Coroutines that take turns inside forward."""
    return Coroutine(), lambda model, i: train(model, data(5, 6, seed=i))


class Conversation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def listener(self):
        total = torch.zeros(5, 6)
        while True:
            h = yield total
            total = total + self.b(h).tanh()

    def forward(self, x):
        other = self.listener()
        next(other)
        for _ in range(3):
            x = other.send(self.a(x).relu())
        other.close()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: setattr(self, "done", True))
            return self.head(x)


@case(often=False)
def generator_that_is_sent_to():
    """A generator that holds a running sum and is sent activations."""
    return Conversation(), lambda model, i: train(model, data(5, 6, seed=i))


@dataclasses.dataclass(frozen=True)
class Report:
    out: Tensor
    parts: tuple[Tensor, ...]
    note: str = ""


class Both(NamedTuple):
    left: Tensor
    right: Report


class Slots:
    __slots__ = ("left", "right")

    def __init__(self, left, right) -> None:
        self.left, self.right = left, right


class Bag(collections.OrderedDict):
    def __init__(self, kind, **items) -> None:
        super().__init__(items)
        self.kind = kind

    def __getattr__(self, name):
        return self[name]


class Returns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, kind):
        h = self.a(x).relu()
        out = self.head(h)
        if kind == "slots":
            return Slots(out, [h])
        if kind == "bag":
            deep = collections.defaultdict(list, h=[h, None, "text", 3])
            return Bag(kind, out=out, deep=deep, both=Both(out * 2, h))
        if kind == "map":
            return map(lambda t: t * 2, (out, h))
        return Both(out, Report(h, (h * 2, out.sum())))


@case()
def outputs_of_all_kinds():
    """Named tuples of dataclasses, objects with slots, dict subclasses, iterators as outputs."""

    def step(model, i):
        x = data(5, 6, seed=i)
        both, slots, bag, lazily = (model(x, kind) for kind in ("both", "slots", "bag", "map"))
        found = [both.left, both.right.out, *both.right.parts, slots.left, *slots.right, bag.out, bag.deep["h"][0]]
        found += [*lazily, *bag.deep["none"], bag.both.left]
        assert bag.kind == "bag"
        loss_of(found).backward()
        return found

    return Returns(), step


class Fields(collections.OrderedDict):
    """Its entries are attributes, too."""

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Fielded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        fields = Fields()
        h = self.a(x).relu()
        fields["out"], fields["hidden"], fields.name = self.head(h), Both(h, [h * 2]), "n"
        return fields


@case(static=True, same=True)
def dictionary_with_attributes():
    """What the output's class is has to survive the program."""

    def step(model, i):
        found = model(data(5, 6, seed=i))
        assert found.name == "n" and isinstance(found, Fields) and list(found) == ["out", "hidden"]
        loss_of([found.out, found["hidden"].left, *found.hidden.right]).backward()
        return found["out"], found.hidden.left

    return Fielded(), step


class Entries(dict):
    """What is no entry is a KeyError, also for who asks whether there is an attribute."""

    __getattr__ = dict.__getitem__


class Tagged(list):
    def __init__(self, items, tag) -> None:
        super().__init__(items)
        self.tag = tag


class Pair(tuple):
    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))

    @property
    def left(self):
        return self[0]


class Contained(Fielded):
    def forward(self, x):
        h = self.a(x).relu()
        return Entries(out=self.head(h), many=Tagged([h, Pair(h * 2, 3)], "t"), most=torch.max(h, 1))


@case(static=True, same=True)
def containers_of_the_users():
    def step(model, i):
        found = model(data(5, 6, seed=i))
        assert found.many.tag == "t" and isinstance(found.many[1], Pair)
        loss_of([found.out, found.many[0], found.many[1].left, found.most.values]).backward()
        return found.out, found.many[1].left, found.many[1][1]

    return Contained(), step


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x, self.layer(x), x


@case()
def input_returned():
    """The input itself is among the outputs, twice."""

    def step(model, i):
        x = data(5, 6, seed=i).requires_grad_(i != 1)
        first, out, last = model(x)
        assert first is x and last is x
        loss_of([first, out, last]).backward()
        return out, x.grad

    return Same(), step


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, table):
        x.mul_(0.5)
        table["seen"] = self.layer(x.clone())
        x[:, 0] += table["seen"][:, 1]
        return self.head(x)


@case()
def input_written_to():
    """forward writes into its input, which another layer made, and into a dict of the caller's."""
    outer = nn.Linear(6, 6)

    def step(model, i):
        outer.zero_grad()
        x, table = outer(data(5, 6, seed=i)), {}
        out = model(x, table)
        loss_of([out, x * 1, table["seen"]]).backward()
        return out, x, table["seen"], [p.grad for p in outer.parameters()]

    return WritesInput(), step


class Twin(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


class Changes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.layer.__class__ = Twin if type(self.layer) is nn.Linear else nn.Linear
        return self.head(self.layer(x))


@case(often=False)
def class_changed_inside():
    """forward changes the class of a part."""
    return Changes(), lambda model, i: train(model, data(5, 6, seed=i))
