"""The methods that `benchmarks.faithfulness` compares: lfpgraph's in one line each, and those of other tools."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lfpgraph

from .faithful_models import call_of, logits

__all__ = ["Side", "missing", "sides"]

STEPS = 32
PEERS = ("zennit", "lxt", "captum", "autolrp")
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class Side:
    """One method.

    Attributes:
        explain: model, inputs [n, ...] or token ids [n, length], and a class [n] to relevance of the inputs' shape.
        tool: whose it is. passes: forward and backward passes for one explanation.
        baseline: what stands for an input that is not there, where the method is told; "0" where it is not.
    """

    name: str
    tool: str
    explain: Method
    passes: int = 1
    baseline: str = "0"


def missing() -> list[str]:
    """Which of the other tools are not installed."""
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def sides(kind: str, black: float) -> list[Side]:
    """The methods for a model; those of tools that are not installed are left out.

    Args:
        black: the darkest pixel of the training images.
    """
    found = [Side("random", "-", _random, 0, "-")] + _ours(kind, black)
    for tool, make in (("zennit", _zennit), ("captum", _captum), ("autolrp", _autolrp)):
        if tool not in missing():
            found += make(kind, black)
    if kind != "cnn" and "lxt" not in missing():
        found.append(Side("LXT's functions", "lxt", _attribute("lxt")))
    return found


def _random(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


def _attribute(composite: Any, **how: Any) -> Method:
    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        if x.is_floating_point():
            return lfpgraph.attribute(model, x, target, composite, **how)
        return lfpgraph.attribute(model, call_of(x), target, composite, **how)["input_ids"]

    return explain


def _ours(kind: str, black: float) -> list[Side]:
    text = kind in ("text", "planted")
    names = ["deeplift", "gradient-x-input", "attnlrp", "cp-lrp"]
    if kind == "cnn":
        names = ["deeplift", "gradient-x-input", "gamma", "epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1"]
    found = [Side(name, "lfpgraph", _attribute(name)) for name in names]
    if kind != "cnn":
        for name in ("attnlrp", "cp-lrp"):
            wide = lfpgraph.get_composite(name).with_options(epsilon=0.1)
            found.append(Side(f"{name}, epsilon 0.1", "lfpgraph", _attribute(wide)))
        wide = lfpgraph.get_composite("cp-lrp").with_options(epsilon=0.2)
        found.append(Side("cp-lrp, epsilon 0.2", "lfpgraph", _attribute(wide)))
    # A token's baseline is the embedding of padding, which is zero in these models: the rules' own.
    starts = [(0.0, "0")] if text else [(0.0, "0"), (black, "black")]
    start, word = starts[-1]
    best = ["epsilon-plus", "gamma"] if kind == "cnn" else ["attnlrp"]
    if not text:
        for name in ["deeplift", "gradient-x-input", *best]:
            found.append(Side(name, "lfpgraph", _attribute(name, baseline=start), 1, word))
    few = _attribute("gradient-x-input", baseline=start, steps=2)
    found.append(Side("gradient-x-input, 2 steps", "lfpgraph", few, 3, word))
    for name in best:
        along = _attribute(name, baseline=start, steps=STEPS)
        found.append(Side(f"{name}, {STEPS} steps", "lfpgraph", along, STEPS + 1, word))
    for start, word in starts:
        method = _attribute("integrated-gradients", baseline=start, steps=STEPS)
        found.append(Side("integrated-gradients", "lfpgraph", method, STEPS + 1, word))
    return found


class _Logits(nn.Module):
    """A model as others want it: one tensor in, logits out; of a language model word embeddings in."""

    def __init__(self, model: nn.Module, mask: Tensor | None) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return logits(self.model(x))
        mask = self.mask.repeat(len(x) // len(self.mask), 1)  # captum stacks points of a path
        return logits(self.model(inputs_embeds=x, attention_mask=mask))


def _embed(model: nn.Module, x: Tensor) -> Tensor:
    return model.get_input_embeddings()(x).detach()  # type: ignore[operator]


def _on_logits(run: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Method:
    """A method that takes one float tensor, on images or on word embeddings, summed over features."""

    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        if x.is_floating_point():
            plain = isinstance(model, nn.Sequential)
            return run(model if plain else _Logits(model, None), x.clone(), target)
        return run(_Logits(model, (x > 0).long()), _embed(model, x), target).sum(-1)

    return explain


def _zennit(kind: str, black: float) -> list[Side]:
    if kind != "cnn":
        return []  # its composites are for convolutions and linear layers; attention is none of them

    def method(name: str) -> Method:
        def run(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            from tests.support.peers import peer

            with getattr(peer("zennit.composites"), name)().context(model) as modified:
                leaf = x.requires_grad_()
                out = modified(leaf)
                weights = nn.functional.one_hot(target, out.shape[-1]) * out.detach()
                return torch.autograd.grad(out, leaf, weights)[0]

        return _on_logits(run)

    return [Side(n, "zennit", method(n)) for n in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1")]


def _captum(kind: str, black: float) -> list[Side]:
    text = kind in ("text", "planted")

    def method(name: str, **how: Any) -> Method:
        def run(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            model = copy.deepcopy(model) if name == "LRP" else model  # which leaves rules on it where it fails
            tool = getattr(importlib.import_module("captum.attr"), name)(model)
            return tool.attribute(x.requires_grad_(), target=target, **how)

        return _on_logits(run)

    def layer(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            return logits(model(input_ids=ids, attention_mask=mask))

        tool = importlib.import_module("captum.attr").LayerIntegratedGradients(forward, model.get_input_embeddings())  # type: ignore[operator]
        mask = (x > 0).long()
        found = tool.attribute(
            x, torch.zeros_like(x), target=target, additional_forward_args=(mask,), n_steps=STEPS,
            method="riemann_middle", internal_batch_size=len(x),
        )  # fmt: skip
        return found.sum(-1)

    found = [Side("InputXGradient", "captum", method("InputXGradient")), Side("LRP", "captum", method("LRP"))]
    for start, word in [(0.0, "0")] if text else [(0.0, "0"), (black, "black")]:
        found.append(Side("DeepLift", "captum", method("DeepLift", baselines=start), 1, word))
        how = {"n_steps": STEPS, "method": "riemann_middle", "baselines": start}
        found.append(Side("IntegratedGradients", "captum", method("IntegratedGradients", **how), STEPS, word))
    return found + ([Side("LayerIntegratedGradients", "captum", layer, STEPS, "padding")] if text else [])


def _autolrp(kind: str, black: float) -> list[Side]:
    def method(preset: str) -> Method:
        def run(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
            tool = importlib.import_module("autolrp")
            leaf = tool.tensor(x)
            explained = logits(model(leaf)).gather(1, target[:, None]).sum()
            explained.lrp(config=getattr(tool.LRPConfig, preset)())
            return leaf.relevance.as_subclass(Tensor) * float(explained)  # theirs add up to 1 over the batch

        return _on_logits(run)

    names = ["composite", "epsilon_alpha2_beta1"] if kind == "cnn" else ["attnlrp", "cplrp"]
    return [Side(f"LRPConfig.{name}", "autolrp", method(name)) for name in names]
