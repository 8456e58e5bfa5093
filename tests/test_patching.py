"""Patching: the effect of replacing a part, against running the model with hooks; estimates in one pass; circuits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError, CompositeError, NonFiniteError

from .support.helpers import relative


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.project = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(z.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.mlp(x)


class Language(nn.Module):
    """Two transformer blocks over token ids and places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 8), nn.Embedding(5, 8)
        self.blocks, self.out = nn.Sequential(Block(), Block()), nn.Linear(8, 9)

    def forward(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        return self.out(self.blocks(self.words(ids) + self.places(torch.arange(ids.shape[1])))) * scale


def metric(out: Tensor) -> Tensor:
    return out[:, -1, 3] - out[:, -1, 5]


@pytest.fixture(scope="module")
def language() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    clean = torch.tensor([[1, 2, 3, 4, 5], [2, 7, 1, 8, 2], [5, 5, 1, 0, 2]])
    corrupt = clean.clone()
    corrupt[:, 1] = torch.tensor([8, 0, 3])
    return Language().double().eval(), clean, corrupt


def by_hooks(model: Any, module: nn.Module, clean: Tensor, corrupt: Tensor, place: Any) -> Tensor:
    """The metric's change where a module's output has the other run's values at a place."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, i, out: kept.append(out))
    model(corrupt)
    handle.remove()

    def replace(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[place] = kept[0][place]
        return out

    handle = module.register_forward_hook(replace)
    with torch.no_grad():
        found = metric(model(clean))
    handle.remove()
    return found - metric(model(clean)).detach()


def test_exact_effects_are_those_of_hooks(language: Any) -> None:
    model, clean, corrupt = language
    nodes = lfpgraph.patching(model, clean, corrupt, metric, method="exact")
    modules = ["blocks.0", "*.mlp", "*.project"]
    places = lfpgraph.patching(model, clean, corrupt, metric, "positions", "exact", modules=modules)
    assert set(places.effects) == {"blocks.0", "blocks.0.mlp", "blocks.1.mlp", "blocks.0.project", "blocks.1.project"}
    torch.testing.assert_close(nodes.clean, metric(model(clean)).detach())
    torch.testing.assert_close(nodes.corrupt, metric(model(corrupt)).detach())
    for name in ("blocks.0", "blocks.1.mlp", "blocks.0.project"):
        module = model.get_submodule(name)
        assert relative(nodes.effects[name], by_hooks(model, module, clean, corrupt, ...)) < 1e-12
        for i in (1, 4):
            theirs = by_hooks(model, module, clean, corrupt, (slice(None), i))
            assert (places.effects[name][:, i] - theirs).abs().max() < 1e-12
    assert nodes.top(1)[0][0] == max(nodes.effects, key=lambda n: float(nodes.effects[n].mean().abs()))
    assert places.top(1)[0][0][1] in range(5)


@pytest.mark.parametrize("sites", ["nodes", "heads", "positions", "edges"])
def test_estimates_correlate_with_runs(language: Any, sites: str) -> None:
    model, clean, corrupt = language
    exact = lfpgraph.patching(model, clean, corrupt, metric, sites, "exact")
    found = {m: lfpgraph.patching(model, clean, corrupt, metric, sites, m) for m in ("deeplift", "relp", "gradient")}
    for estimate in found.values():
        assert set(estimate.effects) == set(exact.effects)
        assert {n: e.shape for n, e in estimate.effects.items()} == {n: e.shape for n, e in exact.effects.items()}
    assert found["deeplift"].correlation(exact) > 0.95
    assert found["gradient"].correlation(exact) > 0.5
    if sites == "heads":
        assert {e.shape for e in exact.effects.values()} == {(3, 2)}
    if sites == "edges":
        # A writer's edges, in slopes, add up to what it does as a whole.
        whole = lfpgraph.patching(model, clean, corrupt, metric, ["blocks.0.project"], "deeplift")
        parts = sum(e for (writer, _), e in found["deeplift"].effects.items() if writer == "blocks.0.project")
        assert relative(parts, whole.effects["blocks.0.project"]) < 1e-9
        assert ("words", "blocks.0.norm") in exact.effects and ("words", "output") not in exact.effects
        circuit = found["deeplift"].circuit(12)
        assert circuit.number_of_edges() == 12
        assert lfpgraph.pictures.flow_drawing(circuit).axes


def test_images_have_places() -> None:
    """What is linear is estimated exactly, by every method; a place is a pixel of a map."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    clean, corrupt = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64)
    exact = lfpgraph.patching(model, clean, corrupt, 1, "positions", "exact")
    assert exact.effects["0"].shape == (2, 2, 2)
    for method in ("deeplift", "relp", "gradient"):
        found = lfpgraph.patching(model, clean, corrupt, 1, "positions", method)
        assert relative(found.effects["0"], exact.effects["0"]) < 1e-9
    whole = lfpgraph.patching(model, clean, corrupt, lambda out: out.sum(), ["0"], "exact")
    assert whole.effects["0"].shape == (1,)


def test_what_is_refused(language: Any) -> None:
    model, clean, corrupt = language
    for given, message in (
        ((clean, corrupt[:, :4], metric), "same shapes: torch.int64 .3, 5. and torch.int64 .3, 4."),
        ((clean, {"ids": corrupt}, metric), "in the same way"),
        (((clean, 1.0), (corrupt, 2.0), metric), "no tensor: 1.0 and 2.0"),
        ((clean, corrupt, metric, "layers"), "sites='layers'"),
        ((clean, corrupt, metric, []), "sites=.. must be one of nodes, heads"),
        (
            (clean, corrupt, lambda out: out.nothing),
            "the metric fails on the model's output, a tensor of shape .3, 5, 9.",
        ),
        ((clean, corrupt, lambda out: 1.0, "nodes", "exact"), "the metric must return a tensor of numbers.*not float"),
        ((clean, corrupt, metric, ["blocks.7"]), "no module or node of the graph"),
        ((clean, corrupt, metric, ["places"]), "does not depend on the model's inputs"),
    ):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.patching(model, *given)
    with pytest.raises(NonFiniteError, match="the metric is NaN"):
        lfpgraph.patching(model, clean, corrupt, lambda out: metric(out) * torch.nan, ["blocks"])
    with pytest.raises(AttributionError, match="modules=3 must be a pattern"):
        lfpgraph.patching(model, clean, corrupt, metric, modules=3)  # type: ignore[arg-type]
    with pytest.raises(CompositeError, match="unknown composite None"):
        lfpgraph.patching(model, clean, corrupt, metric, method=None)  # type: ignore[arg-type]
    by_place = (lfpgraph.patching(model, clean[i:], corrupt[i:], metric, ["blocks"]) for i in (0, 1))
    with pytest.raises(AttributionError, match="do not belong together"):
        next(by_place).correlation(next(by_place))
    with pytest.raises(CompositeError, match="unknown composite 'slopes'"):
        lfpgraph.patching(model, clean, corrupt, metric, method="slopes")
    found = lfpgraph.patching(model, clean, corrupt, metric)
    with pytest.raises(AttributionError, match='with sites="edges", not .nodes.'):
        found.circuit()
    for read, most in ((found.top, "five"), (found.circuit, "all"), (found.top, 0)):
        with pytest.raises(AttributionError, match="most=.* must be a whole number"):
            read(most)  # type: ignore[arg-type]
    with pytest.raises(AttributionError, match="another lfpgraph.patching, not NoneType"):
        found.correlation(None)  # type: ignore[arg-type]
    with pytest.raises(AttributionError, match="a flow comes from lfpgraph.relevance_flow"):
        lfpgraph.pictures.flow_drawing(None)  # type: ignore[arg-type]
    with pytest.raises(AttributionError, match="relevance is a tensor, not NoneType"):
        lfpgraph.pictures.heatmap(None)  # type: ignore[arg-type]
    plain, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    with pytest.raises(AttributionError, match="no attention head whose output is"):
        lfpgraph.patching(plain, x, x, 1, "heads")
