"""Every way of training takes a step on a transformer, an LSTM and a graph network as they are, or says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.other_kinds import GCN, RecurrentClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lfpgraph
from lfpgraph import policies, rewards
from lfpgraph.comparison import METHODS, method_named
from lfpgraph.comparison.learners import output_of
from lfpgraph.errors import LfpGraphError

RIVALS = ["usf", "brsf", "frsf", "drtp", "straight-through", "surrogate", "sltt", "sltt-k", "hebb", "oja", "lfp"]
WAYS = [*METHODS, *RIVALS]
NONE = {  # what no mechanism can mend: the model has not what the way needs
    "forward-forward": {"lstm": "writes labels into float inputs"},
    "noprop": {"lstm": "needs equal blocks", "gcn": "needs equal blocks"},
    **{
        way: dict.fromkeys(("vit", "lstm", "gcn"), "no stochastic neurons")
        for way in ("unbiased", "through-draws", "smooth-draws")
    },
}


def _vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.randn(6, 1, 8, 8)}


def _lstm() -> tuple[nn.Module, Any]:
    return RecurrentClassifier("LSTM", 20, 8, False, 3), torch.randint(20, (6, 5))


def _gcn() -> tuple[nn.Module, Any]:
    return GCN(10, 8, 3), (torch.randn(6, 10), torch.randint(6, (2, 20)))


MODELS = {"vit": _vit, "lstm": _lstm, "gcn": _gcn}
each_model = pytest.mark.parametrize(
    "kind", ["gcn", pytest.param("lstm", marks=pytest.mark.slow), pytest.param("vit", marks=pytest.mark.slow)]
)


@pytest.mark.parametrize("way", WAYS)
@each_model
def test_takes_a_step(kind: str, way: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[kind]()
    labels, why = torch.randint(3, (6,)), NONE.get(way, {}).get(kind)
    if why is not None:
        with pytest.raises(LfpGraphError, match=why):
            method_named(way).learner_of(model.train(), cross_entropy, inputs).gradients(inputs, labels)
        return
    learner = method_named(way).learner_of(model.train(), cross_entropy, inputs)
    learner.gradients(inputs, labels)
    moved = [name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    matrices = [name for name, p in model.named_parameters() if p.dim() == 2 and "weight" in name]
    assert set(matrices) <= set(moved), set(matrices) - set(moved)
    model.eval()
    found: Tensor = learner.outputs(inputs)
    assert found.shape == (6, 3) and bool(found.isfinite().all())


@pytest.mark.parametrize(
    "policy", [lambda m: policies.ElectronicSynapses(64), lambda m: policies.SaRA(0.3), policies.Dendrites]
)
@each_model
def test_policies_take_steps(kind: str, policy: Any) -> None:
    """Under feedback: the weights, or the dendrites that have grown, are elsewhere after three steps."""
    torch.manual_seed(0)
    model, inputs = MODELS[kind]()
    lfpgraph.wrap(model.train(), "lfp")
    found = policy(model)
    grown = found if isinstance(found, policies.Dendrites) else None
    if grown is not None:
        grown.grow()
    moving = list(model.parameters() if grown is None else grown.candidates())
    optimizer = torch.optim.SGD(moving, 0.5)
    if grown is None:
        found.attach(optimizer, model)
    before, labels = [p.detach().clone() for p in moving], torch.randint(3, (6,))
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(output_of(model, inputs), labels).backward()
        optimizer.step()
    moved = [bool((p != q).any()) for p, q in zip(moving, before)]
    assert all(moved) if grown is not None else any(moved)


@each_model
def test_rewards_take_a_step(kind: str) -> None:
    """Log-probabilities of what a model chose are the business of its output alone, whatever the model."""
    torch.manual_seed(0)
    model, inputs = MODELS[kind]()
    lfpgraph.wrap(model.train(), "lfp")
    chosen = torch.randint(3, (6,))
    with torch.no_grad():
        then = rewards.log_probs_of(output_of(model, inputs), chosen)
    log_p = rewards.log_probs_of(output_of(model, inputs), chosen)
    rewards.PolicyGradient.grpo().loss(log_p, torch.randn(6), old=then).backward()
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2 and "weight" in name}
    assert all(p.grad is not None and bool(p.grad.any()) for p in matrices.values())
