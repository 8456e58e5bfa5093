"""`lfp-epsilon` equals the published lfprop 1.0.0 (float64, relative 1e-8; golden file by make_lfprop_golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .golden.golden_models import MODELS
from .support.helpers import relative

GOLDEN = Path(__file__).parent / "golden" / "lfprop_epsilon.npz"


def _case(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        data = {k.removeprefix(name + "/"): torch.from_numpy(file[k]) for k in file.files if k.startswith(name + "/")}
    model = MODELS[name]()[0].double().train()
    model.load_state_dict({k.removeprefix("state/"): v for k, v in data.items() if k.startswith("state/")})
    return model, data


def _check(found: Tensor, expected: Tensor, what: str) -> None:
    size = expected.norm().item()
    assert size > 0 or found.norm().item() == 0, what
    assert relative(found, expected) < 1e-8, f"{what}: {relative(found, expected)}"


@pytest.mark.parametrize("name", MODELS)
def test_feedback_equals_lfprop(name: str) -> None:
    model, data = _case(name)
    found = lfpgraph.feedback(model, data["inputs"], reward=data["reward"], composite="lfp-epsilon")
    for parameter, _ in model.named_parameters():
        _check(found[parameter], data[f"feedback/{parameter}"], parameter)
    _check(found["input_0"], data["input_reward"], "input reward")


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn-step-bn-avg", "cnn-silu-max"])
def test_wrapped_backward_equals_lfprop(name: str) -> None:
    model, data = _case(name)
    lfpgraph.wrap(model, "lfp-epsilon")
    inputs = data["inputs"].clone().requires_grad_()
    outputs = model(inputs)
    _check(outputs.detach(), data["outputs"], "outputs")
    lfpgraph.reward_loss(outputs, data["reward"]).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None
        _check(-p.grad, data[f"feedback/{parameter}"], parameter)
