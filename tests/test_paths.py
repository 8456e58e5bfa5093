"""Baselines and paths: relevance against a reference point, by hand, against captum, and refused where it means nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError

from .support.helpers import relative
from .support.peers import peer


class Cube(nn.Module):
    """The sum of x^3, and of 2 y where y is given."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        cubes = (x * x * x).sum(1)
        return cubes if y is None else cubes + 2 * y.sum(1)


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double().eval(), torch.randn(4, 1, 5, 5, dtype=torch.float64)


def test_by_hand() -> None:
    """f = x^3 with the slope 3 x^2, x = 2: at x, in the middle of 0 to 2, and at 0.5 and 1.5."""
    x = torch.tensor([[2.0], [2.0]], dtype=torch.float64)

    def relevance(**how: Any) -> float:
        return float(lfpgraph.attribute(Cube(), x, None, "gradient-x-input", **how)[0])

    assert relevance() == pytest.approx(12 * 2)
    assert relevance(baseline=1.0) == pytest.approx(12 * 1)
    assert relevance(steps=1) == pytest.approx(3 * 2)
    assert relevance(steps=2) == pytest.approx((0.75 + 6.75) / 2 * 2)
    assert relevance(steps=1, baseline=1.0) == pytest.approx(3 * 1.5**2 * 1)
    assert relevance(steps=100, baseline=1.0) == pytest.approx(2**3 - 1, rel=1e-4)


def test_baselines_of_several_inputs() -> None:
    """By name, whatever the order; rows of one serve all; every input has its own way."""
    inputs = {"x": torch.full((3, 2), 2.0), "y": torch.full((3, 4), 5.0)}
    start = {"y": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "x": torch.zeros(3, 2)}
    found = lfpgraph.attribute(Cube(), inputs, None, "gradient-x-input", baseline=start)
    torch.testing.assert_close(found["y"], 2 * (inputs["y"] - start["y"]))
    torch.testing.assert_close(found["x"], torch.full((3, 2), 24.0))


@pytest.mark.parametrize("composite", ["lrp-0", "gamma", "z-plus"])
def test_without_biases_the_path_from_zero_changes_nothing(composite: str) -> None:
    """A ReLU network without biases hands relevance on in the same shares at every point of the way from 0."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3, bias=False)]
    model, x = nn.Sequential(*layers).double(), torch.rand(4, 1, 5, 5, dtype=torch.float64)
    once = lfpgraph.attribute(model, x, 1, composite)
    assert relative(lfpgraph.attribute(model, x, 1, composite, steps=3), once) < 1e-4  # stabilizers are 1e-6
    assert relative(lfpgraph.attribute(model, x, 1, composite, baseline=0.0), once) < 1e-9
    assert relative(lfpgraph.attribute(model, x, 1, composite, baseline=0.5), once) > 0.1


def test_integrated_gradients_are_the_path_of_gradients(net: Any) -> None:
    model, x = net[0], 20 * net[1]
    predicted = model(x).argmax(1)
    assert not torch.equal(model(-0.8 * x).argmax(1), predicted)  # on the way the model predicts otherwise
    how: Any = {"steps": 5, "baseline": -x}
    named = lfpgraph.attribute(model, x, "predicted", "integrated-gradients", **how)
    torch.testing.assert_close(lfpgraph.attribute(model, x, predicted, "gradient-x-input", **how), named)


@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_equals_captum(net: Any, baseline: float) -> None:
    model, x = net
    captum, target = peer("captum.attr"), torch.tensor([0, 1, 2, 1])
    theirs = captum.IntegratedGradients(model).attribute(
        x, baselines=baseline, target=target, n_steps=8, method="riemann_middle"
    )
    ours = lfpgraph.attribute(model, x, target, "integrated-gradients", steps=8, baseline=baseline)
    assert relative(ours, theirs) < 1e-9
    theirs = captum.InputXGradient(model).attribute(x.clone().requires_grad_(), target=target).detach()
    assert relative(lfpgraph.attribute(model, x, target, "gradient-x-input"), theirs) < 1e-9


class Texts(nn.Module):
    """A classifier of token ids, with positions and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6, padding_idx=0), nn.Embedding(5, 6)
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.words(ids.view(-1, ids.shape[-1])) + self.places(torch.arange(ids.shape[-1], device=ids.device))
        x = torch.tanh(self.mix(x)) * x
        return self.out(x.sum(1) if mask is None else (x * mask[..., None]).sum(1))


@pytest.fixture(scope="module")
def texts() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Texts().double().eval(), torch.tensor([[1, 4, 2, 9], [3, 3, 10, 7], [5, 6, 8, 1]])


def test_paths_of_token_ids(texts: Any) -> None:
    """From zero and from the embeddings of other ids, for another batch, and beside a float input, which has a path, too."""
    model, ids = texts

    def by_autograd(ids: Tensor, start: Tensor, mask: Tensor | None = None) -> Tensor:
        end, total = model.words(ids).detach(), torch.zeros(())
        handle = model.words.register_forward_hook(lambda module, inputs, out: point)
        for k in range(4):
            point = (start + (k + 0.5) / 4 * (end - start)).requires_grad_()
            here = None if mask is None else mask * (k + 0.5) / 4
            total = total + torch.autograd.grad(model(ids, here)[:, 1].sum(), point)[0] / 4
        handle.remove()
        return (total * (end - start)).sum(-1)

    zero = torch.zeros(3, 4, 6, dtype=torch.float64)
    how: dict[str, Any] = {"composite": "integrated-gradients", "steps": 4}
    assert relative(lfpgraph.attribute(model, ids, 1, **how), by_autograd(ids, zero)) < 1e-12
    pad = model.words(torch.full((3, 4), 9)).detach()
    assert relative(lfpgraph.attribute(model, ids, 1, baseline=torch.tensor([9]), **how), by_autograd(ids, pad)) < 1e-12
    few = lfpgraph.attribute(model, {"ids": ids[:2, :3]}, 1, baseline={"ids": torch.tensor(9)}, **how)
    assert relative(few["ids"], by_autograd(ids[:2, :3], pad[:2, :3])) < 1e-12
    mask = torch.tensor([[1.0, 0.5, 1.0, 0.0]], dtype=torch.float64).expand(3, 4)
    both = lfpgraph.attribute(model, (ids, mask), 1, **how)
    assert relative(both[0], by_autograd(ids, zero, mask)) < 1e-12 and both[1].shape == mask.shape
    rules = lfpgraph.attribute(model, ids, 1, "attnlrp", steps=4)
    assert rules.shape == ids.shape and relative(rules, by_autograd(ids, zero)) > 1e-3
    again = lfpgraph.attribute(model, ids, 1, "attnlrp")  # without a path nothing has changed
    assert relative(again, lfpgraph.attribute(model, ids, 1, "attnlrp", baseline=0.0)) < 1e-9


def test_token_paths_equal_captum(texts: Any) -> None:
    model, ids = texts
    captum, target = (
        peer("captum.attr"),
        torch.tensor([0, 1, 2]),
    )  # its points are float32, so a number of steps it can tell
    theirs = captum.LayerIntegratedGradients(model, model.words).attribute(
        ids, baselines=torch.zeros_like(ids), target=target, n_steps=8, method="riemann_middle"
    )
    pad = torch.zeros_like(ids)  # the id of padding, whose embedding is zero
    for baseline in (None, pad):
        ours = lfpgraph.attribute(model, ids, target, "integrated-gradients", steps=8, baseline=baseline)
        assert relative(ours, theirs.sum(-1).detach()) < 1e-9


def test_what_a_path_refuses(net: Any, texts: Any) -> None:
    model, x = net
    for start, message in (
        (11, "token ids that aten.embedding.default .* does not know"),
        ([1, 2], "that broadcast to the"),
    ):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.attribute(*texts, 0, "integrated-gradients", steps=1, baseline=torch.tensor(start))
    for steps in (0, -1, 2.5, True):
        with pytest.raises(AttributionError, match="steps must be a whole number and at least 1"):
            lfpgraph.attribute(model, x, 0, "epsilon", steps=steps)
    with pytest.raises(
        AttributionError, match=r"that broadcast .* are \[\[4, 1, 5, 5\]\], the baseline.s tensors \[\[7\]\]"
    ):
        lfpgraph.attribute(model, x, 0, "epsilon", baseline=torch.zeros(7))
    with pytest.raises(AttributionError, match="leave record and parameters out"):
        lfpgraph.attribute(model, x, 0, "epsilon", baseline=0.0, record="0")


def test_the_benchmark_runs_without_the_other_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Their methods are left out; a method that fails is named with its error, and the page keeps its prose."""
    from benchmarks import faithful_models, faithful_sides, faithfulness

    def broken(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("cannot\nat all")

    monkeypatch.setattr(faithful_sides, "missing", lambda: [*faithful_sides.PEERS])
    assert {side.tool for side in faithful_sides.sides("text", 0.0)} == {"-", "lfpgraph"}
    sides = faithful_sides.sides("cnn", 0.0)
    chosen = [s for s in sides if s.name == "random" or (s.name == "gradient-x-input" and s.baseline == "black")]
    chosen.append(faithful_sides.Side("Broken", "other", broken))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    small = faithful_models.Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 1, 1e-2, (x, y), (x, y))
    monkeypatch.setattr(faithfulness, "sides", lambda kind, black: chosen)
    monkeypatch.setattr(faithfulness, "task_of", lambda kind: small)
    result = faithfulness.measure("cnn", 2, 4, "held out")
    assert [len(row["runs"]) for row in result["rows"]] == [2, 2, 0] and result["samples"] == 4
    page = tmp_path / "page.md"
    page.write_text(f"Prose.\n{faithfulness.MARK}\nold tables")
    faithfulness.write_page(page, {"missing": ["captum"], "models": {"cnn": result}})
    text = page.read_text()
    assert text.startswith("Prose.") and "old tables" not in text and "Not installed in this run: captum." in text
    assert "- other `Broken`: RuntimeError: cannot\n" in text
    assert text.index("| lfpgraph | `gradient-x-input` | black | 1 |") < text.index("| - | `random` |")  # by ABPC
