"""What attribution is made of: norms merged into layers, embeddings as inputs, modules by name."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.explain.batch_norms import merge_norms

from .support.helpers import relative


def test_norms_are_merged_only_where_that_is_the_same() -> None:
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    conv, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    plain = nn.Sequential(conv, norm, nn.ReLU()).double().eval()
    graph = lfpgraph.trace(plain, x)
    assert merge_norms(graph) == 1 and merge_norms(graph) == 0

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = copy.deepcopy(conv), copy.deepcopy(norm)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return self.norm(out) + out

    grouped = nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2, groups=2), norm).double()
    for why, model in {
        "batch statistics": copy.deepcopy(plain).train(),
        "an activation lies between": nn.Sequential(conv, nn.ReLU(), norm),
        "the layer has another reader": Read().double(),
        "the weights have groups of channels in one dimension": grouped,
    }.items():
        assert merge_norms(lfpgraph.trace(model if "batch" in why else model.eval(), x)) == 0, why


def test_a_norm_whose_parameters_are_made_after_its_layer() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z, scale = self.conv(x), self.norm.weight.detach() * 2
            mean, variance = self.norm.running_mean, self.norm.running_var
            return torch.nn.functional.batch_norm(z, mean, variance, scale, self.norm.bias).mean((2, 3))

    x = torch.randn(2, 1, 6, 6)
    model = Late().eval()
    graph = lfpgraph.trace(model, x)
    assert merge_norms(graph) == 1
    graph.graph.lint()
    assert lfpgraph.attribute(model, x, 0).isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "conv1d", "transposed"])
def test_a_merged_norm_computes_the_same(kind: str) -> None:
    """And a composite that merges none is not given the graph of one that does."""
    torch.manual_seed(0)
    layer, norm, shape = {
        "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6, eps=0.1), (5, 4)),
        "conv1d": (nn.Conv1d(4, 6, 2, bias=False), nn.BatchNorm1d(6, eps=0.1), (5, 4, 7)),
        "transposed": (nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6, eps=0.1, affine=False), (5, 4, 3, 3)),
    }[kind]
    for values in (norm.running_mean, norm.running_var, *norm.parameters()):
        nn.init.uniform_(values, 0.5, 2)
    model, x = nn.Sequential(layer, norm, nn.Tanh()).double().eval(), torch.randn(shape, dtype=torch.float64)
    merging = lfpgraph.get_composite("lrp-0")
    found = lfpgraph.attribute(model, x, lambda out: out.square().sum(), merging, details=True)
    torch.testing.assert_close(found.output, model(x).detach())
    without = replace(merging, merge_norms=False)
    apart, alone = (
        lfpgraph.attribute(m, x, lambda o: o.square().sum(), without) for m in (model, copy.deepcopy(model))
    )
    assert relative(apart, alone) < 1e-12 and relative(apart, found.inputs) > 1e-3


class TwoTables(nn.Module):
    """Token ids looked up in two embeddings, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.out = nn.Embedding(9, 6), nn.Embedding(9, 6), nn.Linear(6, 3, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out((self.words(ids) + self.kinds(ids)).sum(1))
        return out


def test_tokens_have_the_relevance_of_all_their_embeddings() -> None:
    torch.manual_seed(0)
    model, ids = TwoTables().double(), torch.tensor([[1, 4, 2], [3, 8, 0]])
    found = lfpgraph.attribute(model, ids, 1, "lrp-0", record=["words", "kinds"])
    parts = [found.nodes[name].sum(-1) for name in ("words", "kinds")]
    torch.testing.assert_close(found.inputs, parts[0] + parts[1])
    along = lfpgraph.attribute(model, ids, 1, "integrated-gradients", steps=2)
    torch.testing.assert_close(along.sum(1), model(ids)[:, 1].detach())


class Clipped(TwoTables):
    """Token ids of which those beyond a number are others, and numbers of tokens whose embeddings are taken once more."""

    def forward(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        known = torch.where(ids > 8, 8, ids).view(-1, ids.shape[-1])
        words = self.words(known * (known > 1)).tanh()
        return self.out(words[0] if places is None else nn.functional.embedding(places, words[0]).tanh())  # type: ignore[no-any-return]


def test_a_lookup_is_in_a_table_of_weights_by_what_is_made_of_each_id_alone() -> None:
    torch.manual_seed(0)
    model, ids, places = Clipped().double(), torch.tensor([[1, 4, 12]]), torch.tensor([2, 0, 2, 2])
    alone = lfpgraph.attribute(model, ids, lambda o: o[:, 1].sum(), "lrp-0")
    torch.testing.assert_close(alone, model(ids)[None, :, 1].detach())  # each token has what is made of it
    found = lfpgraph.attribute(model, (ids, places), lambda o: o[:, 1].sum(), "lrp-0", record="words")
    torch.testing.assert_close(found.inputs[0], found.nodes["words"].sum(-1))
    walked = lfpgraph.conservation(model, (ids, places), lambda o: o[:, 1].sum(), "lrp-0")
    assert abs(walked.residue) < 1e-9 and abs(walked.inputs - walked.explained) < 1e-9


def test_a_module_is_not_one_whose_name_begins_alike() -> None:
    widths = [3, 4, *[5] * 9, 2]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:])))
    found = lfpgraph.attribute(model, torch.randn(2, 3), 1, "epsilon", record=["1", "10"]).nodes
    assert found["1"].shape == (2, 5) and found["10"].shape == (2, 2)
