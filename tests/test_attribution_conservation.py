"""Relevance at the inputs and declared leaks add up to the explained output, operation by operation (float64)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lfpgraph.models_zoo import ZOO, build
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph
from benchmarks.conservation import largest


def _doubled(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    return model.double().eval(), pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, inputs
    )


def check(model: nn.Module, inputs: Any, composite: str) -> lfpgraph.Conservation:
    """Nothing is missing, nothing undeclared, and rounding (of casts to float32, where the model makes them) is small."""
    found = lfpgraph.conservation(model, inputs, largest, composite, fallback="retrace")
    size = found.flow + sum(abs(v) for v in found.leaks.values())
    assert abs(found.residue) < 1e-9 * size
    assert abs(found.leaks.get("undeclared", 0.0)) < 1e-9 * size, found.worst
    assert abs(found.leaks.get("rounding", 0.0)) < 1e-4 * size
    return found


@pytest.mark.parametrize("name", ["lenet", "vgg-bn", "lstm", "bert"])
@pytest.mark.parametrize("composite", ["epsilon-plus", "cp-lrp"])
def test_relevance_adds_up(name: str, composite: str) -> None:
    model, batch = build_tiny(name, layers=1)
    model, inputs = _doubled(model, batch.get("input", {k: v for k, v in batch.items() if k != "labels"}))
    found = check(model, inputs, composite)
    attributed = lfpgraph.attribute(model, inputs, largest, composite)
    total = sum(float(r.sum()) for r in pytree.tree_leaves(attributed) if r is not None)
    assert total == pytest.approx(found.inputs, rel=1e-6, abs=1e-9)
    assert found.shares["inputs"] == pytest.approx(found.inputs / found.explained)


def test_leaks_are_told_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    found = lfpgraph.conservation(model, x, None, "lrp-0")
    hidden = torch.relu(model[0](x))
    share_of_bias = ((hidden > 0).double() * model[2].weight * model[0].bias).sum().item()
    assert found.leaks["bias"] == pytest.approx(share_of_bias)
    assert "epsilon" not in found.leaks
    wide = lfpgraph.conservation(model, x, None, lfpgraph.get_composite("epsilon").with_options(epsilon=0.5))
    assert abs(wide.leaks["epsilon"]) > 0.01
    layer = model[0]
    alone = lfpgraph.conservation(
        layer, x, lambda out: out.sum(1), lfpgraph.get_composite("epsilon").with_options(epsilon=0.5)
    )
    z = layer(x).detach()
    size = z + 0.5 * z.sign()
    assert alone.leaks["epsilon"] == pytest.approx((z * 0.5 * z.sign() / size).sum().item())
    assert alone.leaks["bias"] == pytest.approx((z * layer.bias / size).sum().item())
    assert "explained" in found.table() and "bias" in found.table()


def test_a_rule_that_loses_relevance_is_found() -> None:
    """Half of a relu's relevance vanishes without a declaration."""
    relu = torch.ops.aten.relu.default
    half = {relu: lambda call, s, x: [None if g is None else g / 2 for g in call.vjp(s)]}
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    broken = lfpgraph.get_composite("lrp-0").with_options(handlers=half)
    found = lfpgraph.conservation(model, x, None, broken)
    assert found.leaks["undeclared"] == pytest.approx(found.explained / 2)
    assert "relu" in found.worst[0][0]


def test_rounding_where_signals_meet_is_declared() -> None:
    """x comes back from two sides in float32, with large relevance of opposite sign."""

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.float()
            return (y * (1e5 / 7) + y * (3e5 / 7) - y * (4e5 / 7)).double().sum(1) + x.sum(1)

    x = torch.rand(4, 50, dtype=torch.float64) + 0.5
    found = lfpgraph.conservation(Narrow(), x, None, "lrp-0")
    assert abs(found.residue) < 1e-12 * found.flow
    assert "undeclared" not in found.leaks and 0 < abs(found.leaks.get("rounding", 0.0)) < 1e-3 * found.flow


def test_an_output_that_is_returned_twice_is_explained_once() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"logits": out, "same": out}

    model, x = Twice(3, 2, bias=False).double(), torch.rand(4, 3, dtype=torch.float64)
    found = lfpgraph.conservation(model, x, lambda out: out["logits"][:, 0], "lrp-0")
    assert found.explained == pytest.approx(model(x)["logits"][:, 0].sum().item())
    assert found.inputs == pytest.approx(found.explained)
    both = lfpgraph.conservation(model, x, lambda out: (out["logits"] + out["same"])[:, 0], "lrp-0")
    assert both.explained == pytest.approx(2 * found.explained) and both.inputs == pytest.approx(both.explained)


def test_what_no_way_leads_to_is_stopped() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x.detach() * 3

    x = torch.rand(4, 3, dtype=torch.float64)
    found = lfpgraph.conservation(Halves(), x, lambda out: out[0].sum() + out[1].sum(), "lrp-0")
    assert found.leaks["stopped"] == pytest.approx(3 * x.sum().item())
    assert found.inputs == pytest.approx(2 * x.sum().item()) and abs(found.residue) < 1e-12


def test_exp_of_exactly_zero_hands_nothing_on() -> None:
    """Where x is the larger, x less the larger of both is 0, and exp(0) is 1 whatever x is."""

    class Running(nn.Module):
        def forward(self, x: Tensor, before: Tensor) -> Tensor:
            return torch.exp(x - torch.maximum(x, before)).sum(1)

    torch.manual_seed(0)
    x = torch.randn(8, 6, dtype=torch.float64)
    above = torch.rand(8, 6) < 0.5
    before = torch.where(above, x - 1, x + 1)
    found = lfpgraph.conservation(Running(), (x, before), None, "epsilon")
    assert found.leaks["activation at zero"] == pytest.approx(above.sum().item())
    assert abs(found.residue) < 1e-9
    assert lfpgraph.attribute(Running(), (x, before), None, "epsilon")[0].abs().max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_relevance_of_the_zoo_adds_up(name: str) -> None:
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model, (args, kwargs) = _doubled(model, (args, kwargs))
    with torch.no_grad():
        model(*args, **kwargs)  # some models settle the types of their weights in their first run
    check(model, kwargs if kwargs else args, "epsilon-plus")


def test_whole_numbers_that_are_added_are_declared() -> None:
    class Counts(nn.Module):
        counts: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("counts", torch.tensor([1, 2, 3]))

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x + self.counts

    found = lfpgraph.conservation(Counts(), torch.tensor([[1.0, 2.0, -1.0]]), lambda y: y.sum().reshape(1))
    assert (found.inputs, found.leaks["constant"]) == pytest.approx((4.0, 6.0))
    assert found.worst == []


class _Columns(nn.Module):
    """Two embeddings, each of one row of the ids [n, 2, length]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Embedding(9, 4), nn.Embedding(9, 3), nn.Linear(7, 2)

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = self.last(torch.cat([self.first(ids[:, 0]), self.second(ids[:, -1])], -1))
        return features.sum(1)


class _Codes(nn.Module):
    """Codes of zeros and a one for each of the ids [n, length]."""

    classes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", torch.arange(9))
        self.first, self.last = nn.Linear(9, 4, bias=False), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        features: Tensor = self.last(self.first((ids.unsqueeze(-1) == self.classes).float()))
        return features.sum(1)


def test_ids_in_rows_and_ids_as_codes_have_relevance() -> None:
    torch.manual_seed(0)
    for model, ids in ((_Columns(), torch.randint(9, (3, 2, 5))), (_Codes(), torch.randint(9, (3, 5)))):
        found = lfpgraph.attribute(model, ids, target=0, composite="epsilon")
        reached = lfpgraph.attribute(model, ids, target=0, composite="epsilon", baseline=torch.zeros_like(ids), steps=2)
        with torch.no_grad():
            bias = 5 * model.last.bias[0]  # type: ignore[union-attr,index]
            torch.testing.assert_close(found.flatten(1).sum(1) + bias, model(ids)[:, 0], rtol=1e-4, atol=1e-4)
            difference = model(ids)[:, 0] - model(torch.zeros_like(ids))[:, 0]
            torch.testing.assert_close(reached.flatten(1).sum(1), difference, rtol=1e-4, atol=1e-4)
        assert found.shape == reached.shape == ids.shape
    model, ids = _Columns(), torch.randint(9, (3, 2, 5))
    rows = lfpgraph.attribute(model, ids, target=0, composite="epsilon")
    ids[:, 0] = ids[:1, :1, :1]  # what is looked up in one row has its relevance there alone
    again = lfpgraph.attribute(model, ids, target=0, composite="epsilon")
    torch.testing.assert_close(again[:, 1], rows[:, 1])
    assert not torch.allclose(again[:, 0], rows[:, 0])
