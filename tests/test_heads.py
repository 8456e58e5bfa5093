"""Targets of detectors and segmenters, and the search for the best rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError

OUT = SimpleNamespace(
    logits=torch.tensor([[[1.0, 3, 2], [5, 0, 4]], [[0, 1, 2], [3, 4, 9]]]),
    pred_boxes=torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.4, 0.4]]]).expand(2, 2, 4),
)


def test_boxes() -> None:
    def value(**what: Any) -> list[float]:
        return lfpgraph.Box(**what)(OUT).tolist()

    assert value() == [5, 9] and value(label=1) == [3, 4] and value(query=0) == [3, 2]
    assert value(label=2, box=(0.7, 0.6, 0.4, 0.4)) == [4, 9] and value(label=0, box=(0.1, 0.2, 0.2, 0.2)) == [1, 0]
    assert value(query=1, side=2) == pytest.approx([0.4, 0.4])
    assert lfpgraph.Box(2)({"pred_logits": OUT.logits}).tolist() == [4, 9]
    for what, out, message in (
        ({"label": 3}, OUT, "label=3 is out of range: 0 to 2"),
        ({"side": 0}, {"pred_logits": OUT.logits}, r"\(pred_logits\) has no boxes; expected one of pred_boxes"),
        ({}, torch.zeros(2, 3), "are no .n, queries, classes"),
        ({"box": (0, 0)}, OUT, "must be four numbers: x and y of the centre, width and height"),
        ({"box": ("a", 0, 0, 0)}, OUT, "must be four numbers"),
        ({"box": (torch.nan, 0, 0, 0)}, OUT, "must be four numbers"),
        ({"box": (0, 0, 1, 1)}, OUT.logits, "needs an output with pred_boxes"),
        ({"box": (0, 0, 1, 1), "query": 0}, OUT, "query= or box=, not both"),
        ({"label": "cat"}, OUT, "label='cat' must be a whole number"),
        ({"query": 1.0}, OUT, "query=1.0 must be a whole number"),
    ):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.Box(**what)(out)


def test_segments() -> None:
    """The mask may have another size; a relevance map explains the class there."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False)).double(), torch.randn(2, 1, 4, 4).double()
    mask = torch.zeros(2, 2)
    mask[0, 1] = 1  # the right upper quarter
    found = lfpgraph.attribute(model, x, lfpgraph.Segment(1, mask))
    torch.testing.assert_close(found.flatten(1).sum(1), model(x)[:, 1, :2, 2:].flatten(1).sum(1).detach())
    assert not found[..., 3, :].any() and found[..., 0, 3].all()
    logits = torch.tensor([[[[1.0, 0]], [[0, 2]]]])
    assert lfpgraph.Segment(1)({"out": logits}).tolist() == [2] and lfpgraph.Segment(0)(logits).tolist() == [1]
    for target, out, message in (
        (lfpgraph.Segment(2), logits, "are no .n, classes, h, w. with a class 2"),
        (lfpgraph.Segment(0, torch.ones(3)), logits, r"a mask of shape \[3\]"),
        (lfpgraph.Segment(0, torch.zeros(1, 2)), logits, "at no place of the mask"),
        (lfpgraph.Segment(0, torch.zeros(0, 2)), logits, r"a mask of shape \[0, 2\]"),
        (lfpgraph.Segment(0, [[1.0]]), logits, "mask must be a tensor .*, not list"),  # type: ignore[arg-type]
        (lfpgraph.Segment(0.5), logits, "label=0.5 must be a whole number"),  # type: ignore[arg-type]
        (lfpgraph.Segment(0), {"aux": logits}, r"\(aux\) has no logits of places"),
    ):
        with pytest.raises(AttributionError, match=message):
            target(out)


def test_tune() -> None:
    """The best of all that is tried is returned; rules change by depth where that scores better; what fails is named."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    found = lfpgraph.tune(model, [(x, 1)], candidates=["deeplift", "lrp-0"], by_depth=False)
    assert found.score == max(found.scores.values()) and set(found.scores) == {"deeplift", "lrp-0"}
    assert found.table().splitlines()[0].endswith(found.composite.name)
    relevance = lfpgraph.attribute(model, x, 1, found.composite)
    curves = lfpgraph.metrics.perturbation_curves(lambda t: model(t)[:, 1], x, relevance, steps=16)
    assert found.score == pytest.approx(float(curves.abpc.mean()))
    axis = lfpgraph.pictures.perturbation_drawing(curves, "lrp").axes[0]
    assert axis.get_title() == f"lrp: area {found.score:.4g}" and len(axis.lines) == 2

    def flat(model: nn.Module, inputs: Any, target: Any, relevance: Tensor) -> Tensor:
        return -relevance.flatten(1).std(1).mean()  # best if all places have the same

    broken = lfpgraph.Composite("broken", lfpgraph.Ruleset(handlers={"contraction": lambda call, s, *args: []}))
    found = lfpgraph.tune(model, [(x, 1)], flat, ["lrp-0", "flat", broken])
    assert "flat" in found.composite.name and list(found.failed) == ["broken"]


def test_what_tune_refuses() -> None:
    with pytest.raises(AttributionError, match="tune takes an nn.Module, not str"):
        lfpgraph.tune("model", [])  # type: ignore[arg-type]
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    for args, how, message in (
        (([],), {}, "a list of batches"),
        ((x,), {}, "a list of batches"),
        (([x],), {}, "a list of batches"),
        (([(x, 1)],), {"candidates": "lrp-0"}, "a list of candidates"),
        (([(x, 1)], lambda *_: torch.nan), {"candidates": ["lrp-0"]}, "lrp-0: NonFiniteError: the metric is NaN"),
        (([(x, 1)], "aopc"), {}, "metric='aopc'"),
        (([(x, 1)],), {"baseline": x}, "replaces entries by one number"),
        (
            ([((x,), 1)],),
            {"candidates": ["lrp-0"]},
            'no candidate explains this model: lrp-0: .*metric="abpc" is for one float',
        ),
    ):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.tune(model, *args, **how)
