"""Choices under `lfp`: what an alternative would have brought reaches the scores, however the choice is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.learning import learning_structure
from lfpgraph.errors import CompositeError
from lfpgraph.experiments.common.data import flat_digits

PLAIN = lfpgraph.get_composite("lfp").with_options(epsilon=0.0, scale="signal")

# A table [k, d] and values beside the scores [n, k, d], taken where the scores [n, k] are least.
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "product of a mask": lambda s, table, own: F.one_hot(s.argmin(-1), 6).to(s.dtype) @ table,
    "embedding": lambda s, table, own: F.embedding(s.argmin(-1), table),
    "index": lambda s, table, own: table[s.argmin(-1)],
    "index_select": lambda s, table, own: table.index_select(0, s.argmin(-1)),
    "topk": lambda s, table, own: table[s.topk(1, largest=False).indices].squeeze(1),
    "mask": lambda s, table, own: (F.one_hot(s.argmin(-1), 6).to(s.dtype).unsqueeze(-1) * own).sum(1),
    "einsum": lambda s, table, own: torch.einsum("nk,nkd->nd", F.one_hot(s.argmin(-1), 6).to(s.dtype), own),
    "equals": lambda s, table, own: ((s == s.amin(-1, keepdim=True)).to(s.dtype).unsqueeze(-1) * own).sum(1),
    "gather": lambda s, table, own: own.gather(1, s.argmin(-1)[:, None, None].expand(-1, 1, own.shape[-1]))[:, 0],
    "pairs": lambda s, table, own: own[torch.arange(len(s)), s.argmin(-1)],
    "pairs of topk": lambda s, table, own: own[torch.arange(len(s))[:, None], s.topk(1, largest=False)[1]].squeeze(1),
}
TABLE = {"product of a mask", "embedding", "index", "index_select", "topk"}


class Chooser(nn.Module):
    def __init__(self, choose: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.scores, self.own, self.last = nn.Linear(5, 6), nn.Linear(5, 24), nn.Linear(4, 3)
        self.table, self.choose = nn.Parameter(torch.randn(6, 4)), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.choose(4 * self.scores(x), self.table, self.own(x).unflatten(-1, (6, 4))))


def by_hand(scores: Tensor, table: Tensor, own: Tensor, beside: bool) -> Tensor:
    """The same, with masks whose gradients are the two rules."""
    values = own if beside else table.expand(len(scores), 6, 4)
    spread = (scores - scores.mean(-1, keepdim=True)).detach().square().mean().sqrt()
    temperature = 0.3 * spread
    chances = (-scores / temperature).softmax(-1) * temperature / temperature.clamp_min(1.0)
    mask = F.one_hot(scores.argmin(-1), 6).to(scores.dtype)
    blind = torch.lerp(mask, mask.mean(), 0.1)
    credited = (mask + chances - chances.detach()).unsqueeze(-1) * values.detach()
    return (credited + blind.unsqueeze(-1) * (values - values.detach())).sum(1)


def feedback(model: nn.Module, x: Tensor, composite: object, engine: str) -> dict[str, Tensor]:
    twin = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    for _ in range(2):  # the second run is one that is expected
        twin.zero_grad()
        F.cross_entropy(twin(x), torch.arange(len(x)) % 3).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ["live", "static"])
def test_each_form_credits_the_alternatives(form: str, engine: str) -> None:
    torch.manual_seed(0)
    model, x = Chooser(FORMS[form]).double(), torch.randn(7, 5, dtype=torch.float64)
    found = feedback(model, x, PLAIN, engine)
    model.choose = partial(by_hand, beside=form not in TABLE)
    expected = feedback(model, x, "gradient", "live")
    assert found.keys() == expected.keys() - ({"table"} if form not in TABLE else {"own.weight", "own.bias"})
    for name, s in found.items():
        torch.testing.assert_close(s, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    assert found["scores.weight"].any()


def test_the_published_rule_credits_what_was_chosen() -> None:
    torch.manual_seed(0)
    model, x = Chooser(FORMS["embedding"]), torch.randn(7, 5)
    found = {engine: feedback(model, x, "lfp-epsilon", engine) for engine in ("live", "static")}
    chosen = (4 * model.scores(x)).argmin(-1)
    for signals in found.values():
        assert "scores.weight" not in signals or not signals["scores.weight"].any()
        assert not signals["table"][[k for k in range(6) if k not in chosen]].any()
    torch.testing.assert_close(found["live"]["table"], found["static"]["table"])


class Router(nn.Module):
    """Four answers, of which the third is right; which is given is chosen or drawn."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.scores, self.draws = nn.Linear(3, 4), draws
        self.register_buffer("answers", torch.tensor([[0.0, 2.0], [-1.0, 1.0], [2.0, 0.0], [0.0, 0.5]]))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        places = scores.softmax(-1).multinomial(1) if self.draws else scores.topk(1).indices
        return torch.zeros_like(scores).scatter(-1, places, 1.0) @ self.answers


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("engine", ["live", "static"])
def test_a_router_learns(draws: bool, engine: str) -> None:
    torch.manual_seed(0)
    model, x = Router(draws), torch.randn(64, 3)
    with torch.no_grad():
        model.scores.bias[2] = -2.0
    before = (model.scores(x).argmax(-1) == 2).float().mean()
    lfpgraph.wrap(model, "lfp", engine=engine)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.zeros(64, dtype=torch.long)).backward()
        optimizer.step()
    lfpgraph.unwrap(model)
    assert before < 0.3 and (model.scores(x).argmax(-1) == 2).float().mean() > 0.9


def test_the_encoder_before_a_codebook_learns() -> None:
    """A quantised autoencoder of digits, without straight-through and without a commitment loss."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
            self.codes = nn.Parameter(torch.randn(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            parts = self.encoder(x).unflatten(-1, (4, 4))
            return self.decoder(self.codes[torch.cdist(parts, self.codes).argmin(-1)].flatten(1))

    digits = flat_digits()[0][0][:512]

    def error(frozen: bool) -> float:
        torch.manual_seed(0)
        model = Quantised()
        model.encoder.requires_grad_(not frozen)
        lfpgraph.wrap(model, "lfp", engine="live")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for x in digits.split(64) * 12:
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            return float((model(digits) - digits).square().mean() / digits.var())

    assert error(frozen=False) < 0.9 * error(frozen=True)


def test_scores_of_minus_infinity_are_left_out() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores, self.values = nn.Linear(5, 6), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.scores(x).masked_fill(torch.arange(6) == 1, -torch.inf)
            return self.values(x) * F.one_hot(scores.argmax(-1), 6).to(x.dtype)

    torch.manual_seed(0)
    found = feedback(Masked(), torch.randn(7, 5), "lfp", "live")
    assert all(s.isfinite().all() for s in found.values())
    assert found["scores.bias"][0] and not found["scores.bias"][1]


def test_entries_left_out_by_a_mask_bring_nothing() -> None:
    class Sparse(nn.Module):
        """Attends from the queries of most weight alone, whose rows of a causal mask it looks up."""

        def __init__(self) -> None:
            super().__init__()
            self.queries, self.values = nn.Linear(5, 6), nn.Linear(5, 6)
            self.register_buffer("mask", torch.full((6, 7), torch.finfo(torch.float32).min).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.queries(x).mean(0)
            chosen = weight.topk(3).indices
            scores = self.queries(x).mT[chosen] + self.mask[chosen]
            return 1e3 * self.values(x) * (scores.softmax(-1) @ self.values(x)).mean(0)

    torch.manual_seed(0)
    found = feedback(Sparse(), torch.randn(7, 5), "lfp", "live")
    assert all(s.isfinite().all() and s.any() for s in found.values())


@pytest.mark.parametrize(
    "options", [{"blind_share": -0.1}, {"blind_share": 1.1}, {"sharpness": 0.0}, {"step_widths": ()}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    composite = replace(PLAIN, structure=partial(learning_structure, **options))
    with pytest.raises(CompositeError, match=next(iter(options))):
        feedback(Chooser(FORMS["mask"]), torch.randn(7, 5), composite, "live")
