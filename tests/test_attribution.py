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


def test_one_trace_serves_all_calls(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batch sizes and other composites trace nothing; weights are read anew; the model is not kept alive."""
    from lfpgraph.engine.options import Options
    from lfpgraph.explain.explainer import explainer_of
    from lfpgraph.wrapping import programs as programs_module

    traces = []
    monkeypatch.setattr(programs_module, "trace", lambda *args, **how: traces.append(1) or lfpgraph.trace(*args, **how))
    model = copy.deepcopy(net[0])
    for n in (4, 2, 7):
        lfpgraph.attribute(model, torch.randn(n, 1, 6, 6, dtype=torch.float64), 0)
    (entry,) = explainer_of(model, "epsilon-plus", Options()).programs
    backward = torch.ops.aten.convolution_backward.default
    masks = [node.args[-1] for node in entry.program.feedback.graph.nodes if node.target is backward]
    assert masks and all(mask == [True, False, False] for mask in masks)  # no gradients of weights on the way
    lfpgraph.attribute(model, net[1], 0, "epsilon")
    assert len(traces) == 1
    changed = lfpgraph.attribute(model, net[1], 0)
    with torch.no_grad():
        model[6].weight.mul_(2)
    assert not torch.allclose(lfpgraph.attribute(model, net[1], 0), changed)  # weights are read anew
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
    model, batch = build_tiny("bert")
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


def test_norms_are_merged_only_where_that_is_the_same(net: Any) -> None:
    from lfpgraph.explain.batch_norms import merge_norms

    model, x = net
    graph = lfpgraph.trace(model, x)
    assert merge_norms(graph) == 1 and merge_norms(graph) == 0
    assert merge_norms(lfpgraph.trace(copy.deepcopy(model).train(), x)) == 0  # batch statistics
    shared = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).double().eval()
    assert merge_norms(lfpgraph.trace(shared, x)) == 0  # an activation lies between


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
    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.nn.functional.one_hot(ids, 5).float())

    with pytest.raises(InputError, match="looked up in no embedding"):
        lfpgraph.attribute(OneHot(), torch.tensor([1, 2, 3]), 0)


def test_check_against_lxt_finds_no_difference_and_a_wrong_rule() -> None:
    pytest.importorskip("lxt.explicit.functional")
    model, batch = build_tiny("vit", "eager")
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


def test_importance_and_pruning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[0].weight[3] = 0  # a unit that does nothing
        model[0].bias[3] = -1
    data = [(torch.randn(16, 4).double(), torch.randint(2, (16,))) for _ in range(3)]
    scores = lfpgraph.importance(model, data, by="unit")
    assert scores["0.weight"].shape == (8,) and scores["0.weight"].argmin() == 3 and scores["0.weight"][3] == 0
    weights = lfpgraph.importance(model, data)
    assert weights["2.weight"].shape == (2, 8)
    assert lfpgraph.prune(model, weights, 0.5) == 24
    assert int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) == 24
    with pytest.raises(AttributionError, match="at least one batch"):
        lfpgraph.importance(model, [])
    with pytest.raises(AttributionError, match="between 0 and 1"):
        lfpgraph.prune(model, weights, 2.0)


def test_importance_of_a_reward_is_its_feedback() -> None:
    """Sizes summed over batches of one are the sizes of feedback, which is the weights' reward by size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    reward = lfpgraph.rewards.Softmax()
    rules = lfpgraph.get_composite("lfp-epsilon")
    scores = lfpgraph.importance(model, [(x[i : i + 1], y[i : i + 1]) for i in range(5)], rules, reward=reward)
    expected: dict[str, Tensor] = {}
    for i in range(5):
        found = lfpgraph.feedback(model, x[i : i + 1], lambda out, i=i: reward(out, y[i : i + 1]), rules)
        for name in scores:
            expected[name] = expected.get(name, 0) + found[name].abs()
    for name, score in scores.items():
        assert relative(score, expected[name]) < 1e-4  # an epsilon of 1e-6 enters at the output in another place
    with pytest.raises(lfpgraph.errors.RewardError, match="does not fit outputs"):
        lfpgraph.importance(model, [(x, y)], reward=lambda out, labels: out.sum(1))


def test_bits_go_where_relevance_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    scores = {"0.weight": torch.ones(4, 16).double(), "2.weight": torch.ones(2, 4).double()}
    scores["0.weight"][1] = 100.0
    scores["0.weight"][2] = 0.0
    bits = lfpgraph.bits_by_importance(model, scores, 4.0)
    assert bits["0.weight"][1] == 8 and bits["0.weight"][2] == 2
    before = model[0].weight.detach().clone()
    assert lfpgraph.quantise(model, bits) <= 4 * (64 + 8)
    step = before.abs().amax(1, True) / (2.0 ** (bits["0.weight"][:, None] - 1) - 1)
    assert bool(((model[0].weight - before).abs() <= step / 2 + 1e-12).all())
    assert len(model[0].weight[2].unique()) <= 3  # two bits: minus, zero, plus
    assert lfpgraph.quantise(model, 8) == 8 * 72
    for wrong, message in ({"0.bias": 4}, "no parameter of two"), ({"0.weight": 1}, "at least 2"):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.quantise(model, wrong)
    with pytest.raises(AttributionError, match="below the least choice"):
        lfpgraph.bits_by_importance(model, scores, 1.5)
    with pytest.raises(AttributionError, match="a score of each entry"):
        lfpgraph.bits_by_importance(model, {"0.weight": torch.ones(4)}, 4)
