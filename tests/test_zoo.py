"""Every architecture of the zoo at tiny size takes a training step; published ones trace without memory.

The gradient composite equals autograd and LFP feedback is finite. A few fast entries run by default, all in `slow`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo import ZOO, build, names
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph
from lfpgraph.errors import DataDependentError, InputError, LfpGraphError
from lfpgraph.wrapping.regional import _kind as kind_of

from .support.helpers import relative, true_gradient

FAST = (
    "vgg16",
    "vae",
    "elman-cells",
    "gcn",
    "siren",
    "nerf",
    "lif-mlp",
)
FAMILIES = {
    "CNN", "MLP", "ViT", "audio", "autoencoder", "decoder LLM", "detection", "diffusion", "encoder-decoder", "graph",
    "hybrid CNN-transformer", "linear attention", "mixture of experts", "neural field", "recurrent", "RWKV",
    "segmentation", "spiking", "state space", "state space hybrid", "text encoder", "time series", "vision-language",
}  # fmt: skip
# They branch on their inputs' values, or take what is not zero, which meta tensors do not have.
DATA_DEPENDENT = ("longformer-base", "qwen2-vl-2b", "switch-base-8", "vilt-b32")
# The 15 architectures of DynamicLRP's table with their parameters in millions.
DYNAMIC_LRP = {
    "vgg16": 138.4, "resnet-50": 25.6, "vit-b16": 86.6, "efficientnetv2-m": 54.1, "siglip-2-so400m": 1136.0,
    "wav2vec2-xls-r-300m": 315.5, "whisper-small": 241.7, "gpt2": 124.4, "roberta-large": 355.4,
    "llama-3.2-1b": 1235.8, "gemma-3-270m": 268.1, "qwen3-0.6b": 596.0, "flan-t5-large": 750.3, "deplot": 282.3,
    "mamba-130m": 129.1,
}  # fmt: skip


def entries(chosen: Any = FAST) -> list[Any]:
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.slow]) for name in ZOO]


def cast(value: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, value)


def step(model: nn.Module, args: Any, kwargs: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients of a fixed projection of all outputs, at a fixed seed; and the outputs."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    out = model(*args, **kwargs)
    outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
    loss = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outputs)
    assert isinstance(loss, Tensor)
    if loss.requires_grad:  # without a surrogate, autograd stops at spikes
        loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return grads, [t.detach() for t in outputs]


@pytest.mark.parametrize("name", entries())
def test_training_step(name: str) -> None:
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model, args, kwargs = model.double(), cast(args, torch.float64), cast(kwargs, torch.float64)
    twin = copy.deepcopy(model)
    lfpgraph.wrap(model, true_gradient("auto"))
    found, outputs = step(model, args, kwargs)
    wanted, expected = step(twin, args, kwargs)
    for ours, theirs in zip(outputs, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    everything = sum(g.norm().item() for g in wanted.values())
    for key, value in wanted.items():
        if key not in found:
            assert not value.any(), f"{key} has no feedback"
            continue
        error = (found[key] - value).norm().item()
        assert error <= max(1e-9 * value.norm().item(), 1e-11 * everything, 1e-12), (key, relative(found[key], value))
    lfpgraph.unwrap(model)
    lfpgraph.wrap(model, "lfp-epsilon")
    feedback, _ = step(model, args, kwargs)
    assert feedback and all(bool(torch.isfinite(g).all()) for g in feedback.values())
    assert any(bool(g.any()) for g in feedback.values())


def test_registry() -> None:
    assert len(ZOO) >= 150 and all(name == entry.name for name, entry in ZOO.items())
    assert {entry.family for entry in ZOO.values()} == FAMILIES
    assert names("RWKV") == ["rwkv-4-169m"] and names() == list(ZOO) and names("no such") == []
    assert set(FAST) <= set(ZOO) and set(DYNAMIC_LRP) <= set(ZOO)
    with pytest.raises(KeyError, match="not in the zoo"):
        build("no such")
    with pytest.raises(ValueError, match="published, tiny"):
        build("mlp", "huge")


@pytest.mark.parametrize("name", entries(("vgg16", "efficientnetv2-m", "gpt2", "mamba-130m")))
def test_published_size(name: str) -> None:
    """Built on meta with inputs on meta; the known parameter count where it is one of the table's."""
    with torch.device("meta"):
        model, args, kwargs = build(name)
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    assert tensors and all(t.device.type == "meta" for t in (*tensors, *model.parameters()))
    if name in DYNAMIC_LRP:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(DYNAMIC_LRP[name], rel=2e-3)


def _published(name: str, few: bool = False) -> Any:
    """A published model on meta; with few layers, of each list the first two and all up to the last that is of a new kind."""
    with torch.device("meta"):
        model, args, kwargs = build(name)
    for found in [m for m in model.modules() if isinstance(m, nn.ModuleList)] if few else ():
        kinds = [*map(kind_of, found)]
        del found[max(2, 1 + max(map(kinds.index, kinds), default=0)) :]
    return model, args, kwargs


def _trace(model: nn.Module, args: Any, kwargs: Any) -> lfpgraph.OpGraph:
    """In train mode; in eval mode where a model tests its own values for infinity while training (the DETRs)."""
    try:
        return lfpgraph.trace(model, args, kwargs, dynamic=False)
    except DataDependentError:
        return lfpgraph.trace(model.eval(), args, kwargs, dynamic=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_published_size_traces(name: str) -> None:
    """A few layers stand for all; a model that needs a certain number of them is traced whole."""
    if name in DATA_DEPENDENT:
        model, args, kwargs = _published(name)
        with pytest.raises((DataDependentError, InputError)):
            lfpgraph.trace(model, args, kwargs, dynamic=False)
        return
    try:
        graph = _trace(*_published(name, few=True))
    except LfpGraphError:
        graph = _trace(*_published(name))
    assert any(True for _ in graph.operations())
