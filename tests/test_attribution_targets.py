"""Several targets of one batch (`Targets`): what each alone would have, from one forward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lfpgraph import Contrast, Targets, attribute
from lfpgraph.errors import AttributionError

EACH = [3, [1, 0, 4], "predicted", Contrast("predicted", 2), lambda out: out.square().sum(1)]


class Net(nn.Module):
    """A convolution, a recurrent layer if it is to have one, and a linear one."""

    def __init__(self, recurrent: bool = False) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5, 5)
        self.rnn = nn.GRU(5, 5, batch_first=True) if recurrent else None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(2).mT
        x = x if self.rnn is None else self.rnn(x)[0]
        out: Tensor = self.head(torch.tanh(x).mean(1))
        return out if scale is None else out + 0 * scale.sum()


def _model(recurrent: bool = False) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net(recurrent).double().eval(), torch.randn(3, 2, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "composite", ["recurrent", "epsilon", "epsilon-plus", "attnlrp", "gradient-x-input", "deeplift"]
)
def test_each_target_has_what_it_has_alone(composite: str) -> None:
    """Also where a walk through a recurrent layer writes over what it has read."""
    model, x = _model(composite == "recurrent")
    composite = composite.replace("recurrent", "epsilon")
    found = attribute(model, x, Targets(EACH), composite)
    alone = [attribute(model, x, target, composite) for target in EACH]
    assert found.shape == (len(EACH), *x.shape)
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=0)
    assert all(bool(r.any()) for r in found)


class Counts(TorchDispatchMode):
    """Counts how often an operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func] += 1
        return func(*args, **(kwargs or {}))


def test_the_model_runs_forward_once() -> None:
    model, x = _model()
    attribute(model, x, Targets([0]), "epsilon")
    with Counts() as counts:
        attribute(model, x, Targets([0, 1, 2]), "epsilon")
    assert counts.of[torch.ops.aten.convolution.default] == 1
    assert counts.of[torch.ops.aten.convolution_backward.default] == 3


def test_what_all_targets_need_is_worked_out_once() -> None:
    """z-plus runs a layer with its positive weights, and for an input of both signs with its negative ones."""
    model, x = _model()
    with Counts() as counts:
        attribute(model, x, Targets([0, 1, 2]), "epsilon-plus")
        counts.of.clear()
        attribute(model, x, Targets([0, 1, 2]), "epsilon-plus")
    assert counts.of[torch.ops.aten.convolution.default] == 1 + 2
    assert counts.of[torch.ops.aten.convolution_backward.default] == 3 * 2


def test_details_have_a_dimension_of_targets() -> None:
    model, x = _model()
    options: dict[str, Any] = {"composite": "epsilon", "record": "conv", "parameters": True, "details": True}
    found = attribute(model, {"x": x, "scale": torch.ones(2, dtype=torch.float64)}, Targets([3, 1]), **options)
    alone = [attribute(model, {"x": x, "scale": torch.ones(2, dtype=torch.float64)}, t, **options) for t in (3, 1)]
    assert found.inputs["scale"].shape == (2, 2)
    torch.testing.assert_close(found.inputs["x"], torch.stack([a.inputs["x"] for a in alone]))
    torch.testing.assert_close(found.explained, torch.stack([a.explained for a in alone]))
    torch.testing.assert_close(found.nodes["conv"], torch.stack([a.nodes["conv"] for a in alone]))
    for name, value in found.parameters.items():
        torch.testing.assert_close(value, torch.stack([a.parameters[name] for a in alone]))


@pytest.mark.parametrize("target", [1, Targets([1, 2])])
def test_a_number_that_no_relevance_reaches(target: Any) -> None:
    model, x = _model()
    found = attribute(model, {"x": x, "scale": torch.tensor(1.0, dtype=torch.float64)}, target, "gradient")
    assert found["scale"].shape == ((2,) if isinstance(target, Targets) else ())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.mix(self.embed(ids))).mean(1))
        return out


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"steps": 3, "baseline": 0.1}])
def test_token_ids_and_paths(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, ids = Tokens().double().eval(), torch.randint(11, (3, 5))
    targets = [2, "predicted", Contrast("predicted", 0)]
    if "baseline" in options:
        options = {**options, "baseline": (torch.randint(11, (3, 5)),)}
    found = attribute(model, ids, Targets(targets), "gradient-x-input", **options)
    alone = [attribute(model, ids, target, "gradient-x-input", **options) for target in targets]
    assert found.shape == (3, 3, 5)
    torch.testing.assert_close(found, torch.stack(alone))


def test_a_prediction_along_a_path_is_that_at_its_end() -> None:
    """So that all steps explain the same class; in a contrast as well."""
    model, x = _model()
    with torch.no_grad():
        model.head.bias.copy_(model.head(torch.zeros(5, dtype=x.dtype)) - model(x * 0).mean(0) + torch.eye(5)[4] * 1e-3)
    classes = model(x).argmax(-1).tolist()
    assert model(x / 8).argmax(-1).tolist() != classes
    for target, fixed in (("predicted", classes), (Contrast("predicted", 2), Contrast(classes, 2))):
        torch.testing.assert_close(attribute(model, x, target, steps=4), attribute(model, x, fixed, steps=4))


def test_relevance_that_has_a_derivative() -> None:
    model, x = _model()
    x.requires_grad_()
    found = attribute(model, x, Targets([3, 1]), "gradient-x-input", differentiable=True)
    found.square().sum().backward()
    together, x.grad = x.grad, None
    for target in (3, 1):
        attribute(model, x, target, "gradient-x-input", differentiable=True).square().sum().backward()
    torch.testing.assert_close(x.grad, together)


@pytest.mark.parametrize("wrong", [[], 3, "predicted", [Targets([1])], None])
def test_what_is_no_list_of_targets_is_refused(wrong: Any) -> None:
    with pytest.raises(AttributionError, match="Targets"):
        Targets(wrong)


def test_a_wrong_target_among_several_is_named() -> None:
    model, x = _model()
    with pytest.raises(AttributionError, match="target=7 is out of range"):
        attribute(model, x, Targets([1, 7]))
    with pytest.raises(AttributionError, match="differentiable=True"):
        attribute(model, x.requires_grad_(), Targets([1, lambda out: out.sum(1)]), differentiable=True)
