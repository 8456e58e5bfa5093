"""Every architecture of the zoo, tiny, takes a step on a GPU: gradients are autograd's there, feedback is the CPU's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo import ZOO, build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph

from ..support.device import on_device
from ..support.helpers import true_gradient

pytestmark = pytest.mark.gpu


def _cast(value: Any) -> Any:
    return pytree.tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, value)


def _step(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """Gradients of a fixed projection of all outputs, at a fixed seed, on the CPU."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    out = model(*args, **kwargs)
    outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
    loss = sum(
        (t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view(t.shape)).sum() for t in outputs
    )
    assert isinstance(loss, Tensor)
    if loss.requires_grad:  # without a surrogate, autograd stops at spikes
        loss.backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def _check(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    everything = sum(g.double().norm().item() for g in expected.values())
    for name, value in expected.items():
        if name not in found:
            assert not value.any(), f"{name} has no feedback"
            continue
        error = (found[name].double() - value.double()).norm().item()
        assert error <= tolerance * max(value.double().norm().item(), 1e-2 * everything, 1e-3), name


@pytest.mark.parametrize("name", ZOO)
def test_step(name: str) -> None:
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model, args, kwargs = model.double(), _cast(args), _cast(kwargs)
    there, args_there, kwargs_there = on_device(copy.deepcopy(model), args, kwargs)
    try:
        plain = _step(copy.deepcopy(there), args_there, kwargs_there)
    except RuntimeError as error:
        pytest.skip(f"the plain model does not run in double precision: {error}")
    wrapped = lfpgraph.wrap(copy.deepcopy(there), true_gradient("auto"))
    _check(_step(wrapped, args_there, kwargs_there), plain, 1e-8)
    model.eval(), there.eval()  # masks of dropout are drawn by another generator
    try:
        _check(_step(copy.deepcopy(there), args_there, kwargs_there), _step(copy.deepcopy(model), args, kwargs), 1e-3)
    except AssertionError:
        pytest.skip(
            "gradients hold; feedback is not compared with a CPU's, where plain gradients differ (random draws)"
        )
    except RuntimeError as error:
        assert "can only be called in training mode" in str(error)  # cuDNN's recurrent layers; ours can
    expected = _step(lfpgraph.wrap(model), args, kwargs)
    # many models compute norms and angles in single precision, whatever their weights are in
    _check(_step(lfpgraph.wrap(there), args_there, kwargs_there), expected, 1e-3)
