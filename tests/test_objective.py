"""Where the network ends: the feedback is the same however the loss is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph

from .support.helpers import relative


class Tagger(nn.Module):
    """Logits for each of a sequence's steps, and what `ends` makes of them."""

    def __init__(self, ends: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.ends = ends

    def forward(self, ids: Tensor) -> Any:
        return self.ends(self.head(F.gelu(self.mix(self.embed(ids)))), ids)


def _picked(scores: Tensor, ids: Tensor) -> Tensor:
    return scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), ids)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any, Tensor], Tensor]]] = {
    "loss inside": (lambda z, ids: (_nll(z, ids), z), lambda out, ids: out[0]),
    "loss alone": (_nll, lambda out, ids: out),
    "beside zeros": (lambda z, ids: (_nll(z, ids), torch.zeros_like(z)), lambda out, ids: out[0]),
    "beside what was cleared": (lambda z, ids: (_nll(z, ids), z.clone().zero_()), lambda out, ids: out[0]),
    "beside its target": (lambda z, ids: (_nll(z, ids), ids.double()), lambda out, ids: out[0]),
    "log-probabilities": (lambda z, ids: z.log_softmax(-1), lambda out, ids: -_picked(out, ids).mean()),
    "of the labels": (lambda z, ids: _picked(z.log_softmax(-1), ids), lambda out, ids: -out.mean()),
    "logsumexp": (lambda z, ids: _picked(z, ids) - z.logsumexp(-1), lambda out, ids: -out.mean()),
    "softmax and log": (lambda z, ids: _picked(z.softmax(-1), ids).log(), lambda out, ids: -out.mean()),
    "sums and loss": (lambda z, ids: (_nll(z, ids), _picked(z.log_softmax(-1), ids).sum(1)), lambda out, ids: out[0]),
    "masked": (lambda z, ids: (_picked(z.log_softmax(-1), ids) * (ids >= 0)).sum(-1), lambda out, ids: -out.mean() / 5),
}


@pytest.mark.parametrize("engine", ["live", "static"])
@pytest.mark.parametrize("form", FORMS)
def test_same_feedback_in_every_form(form: str, engine: str) -> None:
    ids = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
    found = []
    for ends, loss_of in ((lambda z, ids: z, _nll), FORMS[form]):
        model = lfpgraph.wrap(Tagger(ends).double(), "lfp-epsilon", engine=engine)
        loss_of(model(ids), ids).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        assert expected is not None and relative(found[1][name], expected) < 1e-9, name
