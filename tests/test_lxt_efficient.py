"""`attnlrp` and `cp-lrp` equal LXT's efficient implementation, patched into unmodified transformers models (float64)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph

from .support.helpers import relative
from .support.peers import peer

patches = peer("lxt.efficient.patches")
rules = peer("lxt.efficient.rules")


def _gpt2_mlp(self: Any, hidden: Tensor) -> Tensor:
    """LXT's patch of GPT-2's feed-forward part."""
    return self.c_proj(rules.identity_rule_implicit(self.act, self.c_fc(hidden)))


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def _patch(monkeypatch: pytest.MonkeyPatch, name: str, wrap: Any, gate: Any) -> None:
    """LXT's patch map of a model, on transformers' own classes, undone after the test."""
    from transformers.activations import GELUActivation

    module = _module(name)
    monkeypatch.setattr(module, "eager_attention_forward", wrap(module.eager_attention_forward))
    monkeypatch.setattr(nn.LayerNorm, "forward", patches.layer_norm_forward)
    for activation in (GELUActivation, nn.Tanh):  # the tanh of BERT's pooler
        monkeypatch.setattr(activation, "original_forward", activation.forward, raising=False)
        monkeypatch.setattr(activation, "forward", patches.non_linear_forward)
    if name == "gpt2":
        monkeypatch.setattr(module.GPT2MLP, "forward", _gpt2_mlp)
    if name in ("llama", "qwen3"):
        prefix = {"llama": "Llama", "qwen3": "Qwen3"}[name]
        monkeypatch.setattr(getattr(module, prefix + "MLP"), "forward", gate)
        monkeypatch.setattr(getattr(module, prefix + "RMSNorm"), "forward", patches.rms_norm_forward)


def _case(name: str) -> tuple[nn.Module, dict[str, Tensor], Any]:
    model, batch = build_tiny(name, "eager", layers=1)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items() if k != "labels"}
    torch.manual_seed(1)
    for parameter in model.parameters():  # zero biases and unit scales would hide errors
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double().eval(), batch, (-1, 4) if name in ("gpt2", "llama", "qwen3") else 2


def _theirs(model: nn.Module, batch: dict[str, Tensor], target: Any) -> Tensor:
    """Gradient times input of the patched model: for text, of the word embeddings, summed over features."""
    batch = dict(batch)
    if "input_ids" in batch:
        embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()  # type: ignore[operator]
        batch["inputs_embeds"] = embedded
    else:
        embedded = batch["pixel_values"] = batch["pixel_values"].clone().requires_grad_()
    logits = model(**batch).logits
    place = target if isinstance(target, tuple) else (target,)
    (gradient,) = torch.autograd.grad(logits[(slice(None),) + place].sum(), embedded)
    relevance = gradient * embedded.detach()
    return relevance.sum(-1) if "inputs_embeds" in batch else relevance


def _gates(name: str) -> Any:
    return {"attnlrp": patches.gated_mlp_forward, "cp-lrp": patches.cp_gated_mlp_forward}[name]


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        pytest.param("gpt2", marks=pytest.mark.slow),
        "llama",
        pytest.param("qwen3", marks=pytest.mark.slow),
        "vit",
    ],
)
def test_equals_lxt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, target = _case(name)
    key = "pixel_values" if name == "vit" else "input_ids"
    wraps = {"attnlrp": patches.wrap_attention_forward, "cp-lrp": patches.cp_wrap_attention_forward}
    ours = {c: lfpgraph.attribute(model, batch, target=target, composite=c)[key] for c in wraps}
    for composite, wrap in wraps.items():
        with monkeypatch.context() as patching:
            _patch(patching, name, wrap, _gates(composite))
            expected = _theirs(copy.deepcopy(model), batch, target)
        assert relative(ours[composite], expected) < 1e-6, f"{composite}: {relative(ours[composite], expected)}"
    assert relative(ours["attnlrp"], ours["cp-lrp"]) > 1e-3
