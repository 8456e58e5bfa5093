"""Branches, and arguments of all kinds."""

from __future__ import annotations

import collections
import dataclasses
import random
from typing import Any

import torch
from torch import Tensor, nn

from .table import case, data, loss_of, train

# Branches


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x, length=2):
        if x.sum() > 0:
            x = self.layers[0](x)
        for _ in range(int(x.abs().max().item()) % 3 + length):
            x = self.layers[1](x).tanh()
        for layer in self.layers[2:]:
            if self.training and random.random() < 0.5:
                continue
            x = x + layer(x).relu()
        while x.norm() > 5:
            x = x / 2
        return self.head(x[x[:, 0] > x[:, 0].median() - 10])


@case()
def branches_on_data():
    """Branches on values, loops of a length that depends on them, layerdrop, rows chosen by value."""

    def step(model, i):
        return train(model, data(5 + i, 6, seed=i), length=i)

    return Branching(), step


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def steps(self, x):
        for _ in range(3):
            x = self.layer(x).tanh()
            yield x

    def forward(self, x):
        return self.head(torch.stack(list(self.steps(x))).sum(0)), (self.head(h) for h in self.steps(x))


@case(same=True)
def generators():
    """Generators inside forward; one is handed out and runs after forward has returned."""

    def step(model, i):
        out, later = model(data(5, 6))
        late = list(later)
        (loss_of(out) + loss_of(late)).backward()
        return out, late

    return Generator(), step


SCALE = 1.0


@case()
def globals_and_closures():
    """A global and a closure's cell that change between steps."""
    factor = 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x * SCALE) + factor

    def step(model, i):
        global SCALE
        nonlocal factor
        SCALE, factor = 1.0 + i, float(i)
        return train(model, data(5, 6))

    return Model(), step


# Arguments


@dataclasses.dataclass
class Batch:
    x: Tensor
    mask: Tensor
    names: list[str] = dataclasses.field(default_factory=list)


Pair = collections.namedtuple("Pair", "x y")


class Graph:
    """Like the data objects of graph libraries: attributes, and changed by forward."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, given, extra=None, *rest, flag=None, **named):
        if isinstance(given, Batch):
            x = given.x * given.mask + len(given.names)
        elif isinstance(given, Graph):
            given.h = self.layer(given["x"])
            x = given.h[given.edge[0]] + given.pos.norm()
        elif isinstance(given, Pair):
            x = given.x - given.y
        elif isinstance(given, dict):
            x = sum(given["xs"]) + given["deep"]["list"][0][1]
        else:
            x = given
        for value in (extra, *rest, *named.values()):
            x = x + 1 if value is None else x * value
        if type(flag) is bool:
            x = x + 3
        h = self.head(self.layer(x).relu())
        return Graph(out=h, more=[h * 2]) if isinstance(given, Graph) else h


@case()
def arguments_of_all_kinds():
    """Dataclasses, named tuples, dicts, nested, objects of one's own; outputs that are objects."""

    def step(model, i):
        x = data(5, 6)
        outs = [
            model(Batch(x, (x > 0).double(), ["a"] * i)),
            model(Pair(x, x.flip(0)), None, 2, 0.5, k=x),
            model({"xs": [x, x * 2], "deep": {"list": [(None, x + 1)]}, "n": i}),
        ]
        graph = Graph(x=x, edge=torch.tensor([[0, 1, 1], [2, 3, 4]]), pos=x[:, :2])
        result = model(graph)
        outs += [result.out, *result.more, graph.h]
        loss_of(outs).backward()
        return outs

    return Anything(), step


@case()
def one_and_true():
    """1, 1.0, True and None as arguments are told apart."""

    def step(model, i):
        x = data(5, 6)
        outs = [model(x, extra, flag=flag) for extra, flag in ((1, 1), (1.0, True), (True, 1.0), (None, False), (0, 0))]
        loss_of(outs).backward()
        return outs

    return Anything(), step


@case(same=True)
def sizes():
    """A batch of one after others, one of zero, and back."""

    def step(model, i):
        outs = [model(data(n, 6)) for n in (5, 1, 0, 3, 1)]
        loss_of([out for out in outs if len(out)]).backward()
        outs[2].sum().backward()
        return outs

    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), step


@case()
def integers_and_ids():
    """Token ids, integer flags and bool masks as inputs, of lengths that change."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 3)

        def forward(self, ids, mask, n):
            h = self.embed(ids).masked_fill(~mask[..., None], 0.0)
            return self.head(h.sum(1) / n)

    def step(model, i):
        ids = torch.arange(2 * (3 + i)).view(2, 3 + i) % 11
        return train(model, ids, ids > 1, 2 + i)

    return Model(), step


class Jagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        rows = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return self.head(self.layer(rows).relu()).values()


@case(says=("nested tensors", "no feedback"))
def nested_tensors():
    """Rows of different lengths: said to give gradients alone."""
    return Jagged(), lambda model, i: train(model, data(5, 6, seed=i))


class Strided(Jagged):
    """Rows in the older layout, which say no size at all."""

    def forward(self, x):
        h = self.layer(x)
        rows = torch.nested.as_nested_tensor([h[:2], h[2:]], layout=torch.strided)
        return self.head(torch.nested.to_padded_tensor(rows, 0.0))


@case(says=("nested tensors", "no feedback"))
def nested_tensors_of_the_older_layout():
    return Strided(), lambda model, i: train(model, data(5, 6, seed=i))


class Masked(Jagged):
    def forward(self, x):
        h = self.layer(x)
        seen = torch.masked.masked_tensor(h.detach(), h.detach() > 0)
        return self.head(h * seen.tanh().to_tensor(0.5))


@case()
def masked_tensors():
    """Tensors of a class with a dispatch of its own, which has no memory to be compared."""
    return Masked(), lambda model, i: train(model, data(5, 6, seed=i))


class Shown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).relu()), self.layer.weight


@case(says=("feedback only in part",))
def parameter_among_the_outputs():
    """What the loss does with a parameter itself is no feedback, whichever engine runs; and it is the parameter itself."""

    def step(model, i):
        out = train(model, data(5, 6, seed=i))
        assert out[1] is model.layer.weight
        return out

    return Shown(), step
