"""Models that `benchmarks.faithfulness` explains, trained here by backprop on data that ships with Python's packages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lfpgraph.models_zoo.digits import cnn, vit
from torch import Tensor, nn

from lfpgraph.demo.data import digits

__all__ = ["KINDS", "Task", "load", "logits", "task_of"]

KINDS = ("cnn", "vit", "text", "planted")
CLASSES, KEYS, FILLERS = 3, 8, 200  # of the planted task


@dataclass
class Task:
    """Data and a way to make a model of them.

    Attributes:
        build: a new model; epochs, rate: of its training.
        train, held_out: inputs [n, ...] and labels [n]. Token ids have 0 at padding.
        truth: ids [n, length] and a class [n] to the tokens that speak for the class, [n, length]; None where unknown.
    """

    build: Callable[[], nn.Module]
    epochs: int
    rate: float
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    truth: Callable[[Tensor, Tensor], Tensor] | None = None


def logits(out: Any) -> Tensor:
    """A model's logits, whatever it wraps them in."""
    return out if isinstance(out, Tensor) else out.logits


def call_of(x: Tensor) -> dict[str, Tensor]:
    """Token ids as the arguments of a language model."""
    return {"input_ids": x, "attention_mask": (x > 0).long()}


def task_of(kind: str) -> Task:
    """The task of a name in `KINDS`."""
    if kind in ("cnn", "vit"):
        train, held_out = digits()
        return Task(cnn if kind == "cnn" else vit, 15, 3e-3 if kind == "cnn" else 1e-3, train, held_out)
    return _docstrings() if kind == "text" else _planted()


def load(model: nn.Module, task: Task, seed: int) -> None:
    """Give the model the weights that this seed trains, so that one traced program serves all seeds."""
    torch.manual_seed(seed)
    trained = task.build()
    x, y = task.train
    count = -(-len(x) // 64)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=task.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.rate, total_steps=task.epochs * count)
    for _ in range(task.epochs):
        for rows in torch.randperm(len(x)).split(64):
            out = trained(x[rows]) if x.is_floating_point() else trained(**call_of(x[rows]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits(out), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.load_state_dict(trained.state_dict())
    model.eval()


def _bert(words: int, length: int, labels: int) -> Callable[[], nn.Module]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=length, num_labels=labels,
    )  # fmt: skip
    return lambda: BertForSequenceClassification(config)


def _docstrings(length: int = 32, words: int = 3000, held_out: int = 300) -> Task:
    """From which of three libraries is a docstring? 1,200 to learn from, 300 held out; words are whole."""
    from lfpgraph.experiments.common.texts import docstrings

    seen: set[str] = set()
    texts = [
        (t.lower().split()[:length], k)
        for k, library in enumerate(("torch", "scipy", "networkx"))
        for t in docstrings(library, 500, seen)
    ]
    common = [w for w, _ in Counter(w for t, _ in texts for w in t).most_common(words - 2)]
    index = {w: i + 2 for i, w in enumerate(common)}
    ids = torch.tensor([[index.get(w, 1) for w in t] + [0] * (length - len(t)) for t, _ in texts])
    labels = torch.tensor([k for _, k in texts])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    ids, labels = ids[order], labels[order]
    return Task(
        _bert(words, length, 3), 8, 1e-3, (ids[held_out:], labels[held_out:]), (ids[:held_out], labels[:held_out])
    )


def _planted(count: int = 2300, held_out: int = 300, length: int = 24) -> Task:
    """Texts of filler words with two key words of the right class and one of another; what should be found is known."""
    drawn = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=drawn)

    first = 1 + FILLERS  # the key words follow the fillers
    ids = 1 + draw(FILLERS, count, length)
    labels = draw(CLASSES, count)
    other = (labels + 1 + draw(CLASSES - 1, count)) % CLASSES
    places = torch.rand(count, length, generator=drawn).argsort(1)[:, :3]
    for column, classes in enumerate((labels, labels, other)):
        ids[torch.arange(count), places[:, column]] = first + classes * KEYS + draw(KEYS, count)

    def truth(tokens: Tensor, classes: Tensor) -> Tensor:
        return (tokens >= first) & ((tokens - first) // KEYS == classes[:, None])

    train, test = (ids[held_out:], labels[held_out:]), (ids[:held_out], labels[:held_out])
    return Task(_bert(first + CLASSES * KEYS, length, CLASSES), 8, 1e-3, train, test, truth)
