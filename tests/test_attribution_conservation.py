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


def _first(output: Any) -> Tensor:
    """The sum of a model's first float output: some target that every model has."""
    leaves = pytree.tree_leaves(output)
    return next(o for o in leaves if isinstance(o, Tensor) and o.is_floating_point() and o.dim() > 0).sum()


def _doubled(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    return model.double().eval(), pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, inputs
    )


def check(model: nn.Module, inputs: Any, composite: str, wide: bool = True) -> lfpgraph.Conservation:
    """Nothing is missing, and what no declaration covers is rounding (of casts to float32, where the model makes them)."""
    found = lfpgraph.conservation(model, inputs, _first, composite, fallback="retrace")
    size = found.flow + sum(abs(v) for v in found.leaks.values())
    assert abs(found.residue) < 1e-9 * size
    assert abs(found.leaks.get("undeclared", 0.0)) < (1e-9 if wide else 1e-5) * size, found.worst
    return found


@pytest.mark.parametrize("name", ["lenet", "vgg-bn", "lstm", "bert"])
@pytest.mark.parametrize("composite", ["epsilon-plus", "cp-lrp"])
def test_relevance_adds_up(name: str, composite: str) -> None:
    model, batch = build_tiny(name)
    model, inputs = _doubled(model, batch.get("input", {k: v for k, v in batch.items() if k != "labels"}))
    found = check(model, inputs, composite)
    attributed = lfpgraph.attribute(model, inputs, _first, composite)
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
    assert "explained" in found.table() and "bias" in found.table()


def test_a_rule_that_loses_relevance_is_found() -> None:
    """Half of a relu's relevance vanishes without a declaration."""
    relu = torch.ops.aten.relu.default
    half = {relu: lambda node, s, x: [None if g is None else g / 2 for g in node.vjp(s)]}
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    broken = lfpgraph.get_composite("lrp-0").with_options(handlers=half)
    found = lfpgraph.conservation(model, x, None, broken)
    assert found.leaks["undeclared"] == pytest.approx(found.explained / 2)
    assert "relu" in found.worst[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_relevance_of_the_zoo_adds_up(name: str) -> None:
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model, (args, kwargs) = _doubled(model, (args, kwargs))
    check(model, kwargs if kwargs else args, "epsilon-plus", wide=False)
