"""`attribute` as a user calls it: inputs and targets of every kind, nothing of the model changed, bad input refused."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError, InputError

from .support.helpers import relative
from .support.operations import Operations


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers).double().eval(), torch.randn(4, 1, 6, 6, dtype=torch.float64)


def _gradient_x_input(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((model(x) * weights).sum(), x)
    return gradient * x.detach()


def test_gradient_x_input_equals_autograd(net: Any) -> None:
    model, x = net
    found = lfpgraph.attribute(model, x, 2, "gradient-x-input")
    assert relative(found, _gradient_x_input(model, x, torch.tensor([0.0, 0.0, 1.0]))) < 1e-12


@pytest.mark.parametrize("composite", ["epsilon-plus", "lrp-0"])
def test_targets(net: Any, composite: str) -> None:
    """All ways to name the same target agree; a contrast is a difference."""
    model, x = net
    by_class = [lfpgraph.attribute(model, x, c, composite) for c in range(3)]
    same = [torch.tensor([1, 1, 1, 1]), [1, 1, 1, 1], (1,), -2, torch.tensor([[0.0, 1.0, 0.0]]).repeat(4, 1).double()]
    same += [lambda out: out[:, 1]]
    for target in same:
        torch.testing.assert_close(lfpgraph.attribute(model, x, target, composite), by_class[1])
    mixed = lfpgraph.attribute(model, x, torch.tensor([0, 1, 2, 0]), composite)
    torch.testing.assert_close(mixed, torch.stack([by_class[c][i] for i, c in enumerate([0, 1, 2, 0])]))
    contrast = lfpgraph.attribute(model, x, lfpgraph.Contrast(2, 0), composite)
    torch.testing.assert_close(contrast, by_class[2] - by_class[0])
    best = model(x).argmax(1)
    torch.testing.assert_close(
        lfpgraph.attribute(model, x, "predicted", composite), lfpgraph.attribute(model, x, best, composite)
    )


def test_a_batch_in_one_pass_equals_one_by_one(net: Any) -> None:
    model, x = net
    whole = lfpgraph.attribute(model, x, 1)
    torch.testing.assert_close(whole, torch.cat([lfpgraph.attribute(model, row[None], 1) for row in x]))
    assert lfpgraph.attribute(model, x[:0], 1).shape == (0, 1, 6, 6)


def test_nothing_is_changed(net: Any) -> None:
    model, x = net
    model = copy.deepcopy(model).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes, given = dict(model.__dict__), x.clone()
    with torch.no_grad():
        first = lfpgraph.attribute(model, x, 1)
    with torch.inference_mode():
        second = lfpgraph.attribute(model, x, 1)
    torch.testing.assert_close(first, second.clone())
    assert not first.requires_grad and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # batch norm's statistics, too
    assert torch.equal(x, given) and attributes.keys() == model.__dict__.keys()
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[4].weight.grad is None


class Looks(nn.Module):
    """Counts how often Python runs its forward: a program that has been traced does not."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x


def test_one_trace_serves_all_calls(net: Any) -> None:
    """Other batch sizes and other composites trace nothing; weights are read anew; the model is not kept alive."""
    model = copy.deepcopy(net[0])
    model.append(Looks())
    first = lfpgraph.attribute(model, net[1], 0, "epsilon-plus")
    runs = model[7].runs
    for n in (4, 2, 7):
        x = torch.randn(n, 1, 6, 6, dtype=torch.float64)
        with Operations() as seen:
            lfpgraph.attribute(model, x, 0, "epsilon-plus")
        masks = [args[-1] for name, args in seen.calls if name == "aten::convolution_backward"]
        assert masks and all(mask == [True, False, False] for mask in masks)  # no gradients of weights on the way
    other = lfpgraph.attribute(model, net[1], 0, "epsilon")  # of the graph that the other composite has had traced
    assert model[7].runs == runs and not torch.allclose(first, other)
    changed = lfpgraph.attribute(model, net[1], 0, "epsilon-plus")
    with torch.no_grad():
        model[6].weight.mul_(2)
    assert not torch.allclose(lfpgraph.attribute(model, net[1], 0, "epsilon-plus"), changed)  # weights are read anew
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_a_wrapped_model_is_explained_too(net: Any) -> None:
    model = lfpgraph.wrap(copy.deepcopy(net[0]))
    torch.testing.assert_close(lfpgraph.attribute(model, net[1], 1), lfpgraph.attribute(net[0], net[1], 1))
    assert lfpgraph.is_wrapped(model)


class TwoInputs(nn.Module):
    """A float image, an integer that chooses nothing, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(2, 4)

    def forward(self, a: Tensor, b: Tensor, index: Tensor, flag: bool = True) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(a)) + torch.relu(self.second(b))
        return {"score": hidden.sum(-1), "hidden": hidden, "index": index}


def test_structures_of_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    model = TwoInputs().double()
    a, b, index = torch.randn(5, 3).double(), torch.randn(5, 2).double(), torch.arange(5)
    as_tuple = lfpgraph.attribute(model, (a, b, index), lambda out: out["score"], "epsilon")
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == a.shape and as_tuple[2] is None
    as_dict = lfpgraph.attribute(model, {"a": a, "b": b, "index": index, "flag": True}, None, "epsilon")
    assert set(as_dict) == {"a", "b"}
    torch.testing.assert_close(as_dict["b"], as_tuple[1])


def test_recorded_modules_nodes_and_parameters(net: Any) -> None:
    model, x = net
    found = lfpgraph.attribute(model, x, 1, "lrp-0", record=["2", "6", "relu"], parameters=True)
    hidden = model[:3](x)
    assert found.nodes["2"].shape == hidden.shape
    torch.testing.assert_close(found.nodes["2"], found.nodes["relu"])
    torch.testing.assert_close(found.nodes["6"].sum(1), model(x)[:, 1].detach())
    torch.testing.assert_close(found.explained, model(x)[:, 1].detach())
    torch.testing.assert_close(found.output, model(x).detach())
    share = (model(x)[:, 1].detach() - model[6].bias[1].detach()).sum()
    assert float(found.parameters["6.weight"].sum()) == pytest.approx(float(share))
    assert float(found.nodes["2"].sum() + found.parameters["4.bias"].sum()) == pytest.approx(float(share))


def test_relevance_of_tokens() -> None:
    """Of the word embeddings, one number for each token; those of positions are no token's."""
    model, batch = build_tiny("bert", layers=1)
    model = model.double().eval()
    batch.pop("labels")
    found = lfpgraph.attribute(model, batch, 1, "attnlrp", record="bert.embeddings.word_embeddings")
    tokens = found.inputs["input_ids"]
    assert tokens.shape == batch["input_ids"].shape and set(found.inputs) == {"input_ids"}
    torch.testing.assert_close(tokens, found.nodes["bert.embeddings.word_embeddings"].sum(-1))
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach()
    as_floats = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    directly = lfpgraph.attribute(model, as_floats, 1, "attnlrp")["inputs_embeds"]
    torch.testing.assert_close(directly.sum(-1), tokens)
    assert float(tokens[0, -2:].abs().max()) < 1e-12  # masked


@pytest.mark.slow
def test_integrated_gradients_are_complete(net: Any) -> None:
    model, x = net
    start = torch.full_like(x, 0.5)
    found = lfpgraph.attribute(model, x, 1, "integrated-gradients", steps=200, baseline=start)
    way = (model(x) - model(start))[:, 1].detach()
    assert relative(found.sum((1, 2, 3)), way) < 1e-2  # of a network with kinks, 200 points


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "target=3 is out of range: the output has 3 classes, 0 to 2"),
        (torch.tensor([0, 1, 2, 5]), "out of range"),
        (torch.tensor([0, 1]), r"target of shape \[2\] does not fit the output of shape \[4, 3\]"),
        ((0, 0), "only 1 dimensions behind the batch"),
        ((7,), "7 is out of range"),
        (None, r"\[4, 3\] and target= does not say which"),
        ("best", 'the only name is "predicted"'),
        (torch.ones(3), "weights of shape"),
        (lambda out: 1.0, "must return a tensor"),
    ],
)
def test_bad_targets(net: Any, target: Any, message: str) -> None:
    with pytest.raises(AttributionError, match=message) as error:
        lfpgraph.attribute(net[0], net[1], target)
    assert "\n" not in str(error.value)


def test_bad_inputs(net: Any) -> None:
    model, x = net
    with pytest.raises(InputError, match="itself does not run"):
        lfpgraph.attribute(model, torch.randn(2, 1, 9, 9).double(), 0)
    with pytest.raises(AttributionError, match="inputs must be a tensor"):
        lfpgraph.attribute(model, "image.png", 0)
    with pytest.raises(AttributionError, match="is no module or node of the graph; modules: 0"):
        lfpgraph.attribute(model, x, 0, record="layer9")


def test_integers_without_embedding_are_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.stack([ids.float()] * 5, -1))

    with pytest.raises(InputError, match="looked up in no embedding"):
        lfpgraph.attribute(Counts(), torch.tensor([1, 2, 3]), 0)


def test_check_against_lxt_finds_no_difference_and_a_wrong_rule() -> None:
    pytest.importorskip("lxt.explicit.functional")
    model, batch = build_tiny("vit", "eager", layers=1)
    batch = {"pixel_values": batch["pixel_values"].double()}
    report = lfpgraph.check(model.double().eval(), batch, against="lxt")
    compared = {row["op"] for row in report.rows}
    assert report.ok(1e-6) and {"aten.linear.default", "aten.matmul.default", "aten.layer_norm.default"} <= compared
    theirs = lfpgraph.attribute(model, batch, 1, "lxt")["pixel_values"]
    assert relative(theirs, lfpgraph.attribute(model, batch, 1, "attnlrp")["pixel_values"]) < 0.1  # their stabilizers
    with pytest.raises(AttributionError, match="against='zennit' is not known"):
        lfpgraph.check(model, batch, against="zennit")


def test_a_function_in_reward_form_is_a_rule() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, reward: Tensor) -> Tensor:
            return reward / 2

    relu = torch.ops.aten.relu.default
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    plain = lfpgraph.get_composite("epsilon")
    halved = plain.override("1", handlers={relu: lfpgraph.from_reward_function(Halved.apply)})
    expected = lfpgraph.attribute(model, x, 1, plain) / 2
    assert relative(lfpgraph.attribute(model, x, 1, halved), expected) < 1e-6
