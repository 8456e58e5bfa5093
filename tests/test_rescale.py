"""The rescale rule for every operation: equal to captum's DeepLift where that is right, and complete on any model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError, CompositeError, RuleError

from .support.helpers import relative
from .support.peers import peer


def gap(model: nn.Module, x: Tensor, start: Tensor | float, target: Any = 1) -> float:
    """How far the relevance of each sample is from f(x) - f(x0), against the largest such difference."""
    found = lfpgraph.attribute(model, x, target, "deeplift", baseline=start)
    with torch.no_grad():
        moved = (model(x) - model(torch.as_tensor(start, dtype=x.dtype).expand_as(x)))[:, target]
    return float((found.flatten(1).sum(1) - moved).abs().max() / moved.abs().max())


def images(*layers: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(*layers).double().eval(), torch.randn(3, 1, 10, 10, dtype=torch.float64)


def test_equals_captum() -> None:
    """On ReLU and tanh, with a batch norm and pools of means; captum's own rule for max pools does not add up behind a ReLU."""
    warnings.simplefilter("ignore")  # captum's, of its hooks
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU()]
    model, x = images(*layers, nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3))
    target = torch.tensor([0, 1, 2])
    theirs = peer("captum.attr").DeepLift(model).attribute(x.clone().requires_grad_(), baselines=-0.7, target=target)
    ours = lfpgraph.attribute(model, x, target, "deeplift", baseline=-0.7)
    assert relative(ours, theirs.detach()) < 1e-9


def test_max_pools_by_hand() -> None:
    """What exceeds the other run's maximum goes to the entry that makes it."""
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
    x = torch.tensor([[1.0, 2, 3, 4], [5, 2, 3, 4]], dtype=torch.float64).view(2, 1, 2, 2)
    start = torch.tensor([[0, 0.5, 5, 1], [0, 0.5, 2, 1]], dtype=torch.float64).view(2, 1, 2, 2)
    found = lfpgraph.attribute(model, x, 0, "deeplift", baseline=start).flatten(1)
    assert found.tolist() == [[0, 0, -1, 0], [3, 0, 0, 0]]


Function = Callable[[Tensor, Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / (3 + b.square()),
    "three factors": lambda a, b: a * b * a.sigmoid(),
    "einsum of three": lambda a, b: torch.einsum("ni,nj,ni->nj", a, b, a),
    "power": lambda a, b: (a.abs() + 0.1) ** b,
    "larger": lambda a, b: torch.maximum(a, b),
    "both ways": lambda a, b: torch.atan2(a, b + 4),
    "step": lambda a, b: torch.heaviside(a, torch.zeros_like(a)) + b,
    "gate": lambda a, b: a * (a > 0.1) + b,
    "gelu written out": lambda a, b: 0.5 * a * (1 + torch.erf(a * 0.7)) * b,
    "clamp": lambda a, b: a.clamp(-0.3, 0.2) - b,
    "softmax": lambda a, b: a.softmax(-1) * b,
    "softmax written out": lambda a, b: (a - a.amax(-1, True)).exp() / (a - a.amax(-1, True)).exp().sum(-1, True) + b,
    "its logarithm": lambda a, b: a.log_softmax(-1) + b,
    "norm written out": lambda a, b: (a - a.mean(-1, True)) / (a.var(-1, keepdim=True) + 1e-5).sqrt() * b,
    "rms norm": lambda a, b: nn.functional.rms_norm(a, (6,)) + b,
    "instance norm": lambda a, b: nn.functional.instance_norm(a.unflatten(1, (2, 3))).flatten(1) * b,
    "layer norm": lambda a, b: nn.functional.layer_norm(a, (6,)) * b,
    "least": lambda a, b: a.amin(-1, True) + b.max(-1, True).values + b,
    "scatter": lambda a, b: torch.zeros_like(a).scatter(1, torch.arange(6).flip(0).expand(len(a), 6), b) + a,
}  # fmt: skip


class Functions(nn.Module):
    """Each function of two activations, behind a layer and before another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.out(function(self.a(x), self.b(x))) for function in FUNCTIONS.values()], 1)


@pytest.fixture(scope="module")
def functions() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return Functions().double(), torch.randn(4, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_adds_up(functions: Any, name: str) -> None:
    """Relevance adds up to f(x) - f(x0), whatever the operations are."""
    for start in (0.0, torch.linspace(-1, 1, 8, dtype=torch.float64)[None]):
        assert gap(*functions, start, list(FUNCTIONS).index(name)) < 1e-9


def test_adds_up_through_layers() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(196, 3)]
    model, x = images(*layers, nn.LogSoftmax(-1))
    assert gap(model, x, -1.0) < 1e-9
    assert gap(Steps().double(), torch.randn(4, 3, 3, dtype=torch.float64), 0.5) < 1e-6


class Steps(nn.Module):
    """A recurrent layer, and what its last step makes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[0][:, -1]


class Attends(nn.Module):
    """A block with token ids, masks, causal attention, and keys that heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 16), nn.Parameter(torch.randn(7, 16))
        self.q, self.kv, self.norm, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, ids: Tensor | None = None, embedded: Tensor | None = None, causal: bool = True) -> Tensor:
        x = (self.words(ids) if embedded is None else embedded) + self.places
        q, (k, v) = self.q(self.norm(x)).unflatten(-1, (4, 4)), self.kv(x).unflatten(-1, (2, 2, 4)).unbind(-3)
        mask = None if causal else (torch.arange(7) != 2)[None, :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return self.out(z.transpose(1, 2).flatten(2).mean(1) + x.mean(1))


@pytest.mark.parametrize("causal", [True, False])
def test_adds_up_through_attention_from_token_ids(causal: bool) -> None:
    """From zero and from the embeddings of other ids; other sizes run the same program."""
    torch.manual_seed(0)
    model, ids = Attends().double().eval(), torch.randint(11, (3, 7))
    for rows, start in ((3, None), (2, 5)):
        given = None if start is None else {"ids": torch.tensor(start)}
        call = {"ids": ids[:rows], "causal": causal}
        found = lfpgraph.attribute(model, call, 1, "deeplift", baseline=given)["ids"]
        embedded = torch.zeros(rows, 7, 16).double() if start is None else model.words(torch.full((rows, 7), start))
        with torch.no_grad():
            moved = model(ids[:rows], causal=causal)[:, 1] - model(embedded=embedded, causal=causal)[:, 1]
        assert relative(found.sum(1), moved) < 1e-9


class Picks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x[x > 0].sum()


def test_what_is_refused() -> None:
    model, x = images(nn.Flatten(), nn.Linear(100, 3))
    with pytest.raises(CompositeError, match="explains .* and does not train"):
        lfpgraph.wrap(model, "deeplift")
    for call in (lfpgraph.conservation, lfpgraph.relevance_flow):
        with pytest.raises(CompositeError, match="compares the input with a baseline"):
            call(model, x, 1, "deeplift")
    with pytest.raises(RuleError, match="cannot stand for a part of a composite that looks at one run"):
        lfpgraph.attribute(model, x, 1, lfpgraph.get_composite("lrp-0").override("1", "deeplift"))
    with pytest.raises(AttributionError, match="in one pass; leave steps out"):
        lfpgraph.attribute(model, x, 1, "deeplift", steps=3)
    with pytest.raises(AttributionError, match="leave record and parameters out"):
        lfpgraph.attribute(model, x, 1, "deeplift", parameters=True)
    with pytest.raises(AttributionError, match="has as many results as its inputs say, so the runs"):
        lfpgraph.attribute(Picks(), torch.randn(2, 3), 1)
    model = nn.Sequential(nn.Linear(10, 3), nn.Dropout())
    with pytest.raises(AttributionError, match=r"draws random numbers \(call model.eval\(\)\)"):
        lfpgraph.attribute(model, torch.randn(2, 10), 1, "deeplift")
