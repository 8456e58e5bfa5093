"""`attribute` equals zennit on an MLP, a VGG and a ResNet, with batch norms, for every composite both have (float64, 1e-6)."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.lrp import epsilon_gamma_box

from .support.helpers import relative
from .support.peers import peer

composites = peer("zennit.composites")
canonizers = peer("zennit.canonizers")
layer = peer("zennit.layer")
rules = peer("zennit.rules")
types = peer("zennit.types")


class Merge(canonizers.SequentialMergeBatchNorm):  # type: ignore[misc,name-defined]
    """zennit's merge of batch norms, exactly: its norm stays as x / sqrt(1 + eps), 5e-6 off x; here eps is all but 0."""

    def register(self, linears: Any, batch_norm: Any) -> None:
        super().register(linears, batch_norm)
        self.eps, batch_norm.eps = batch_norm.eps, sys.float_info.min  # some versions of torch refuse 0

    def remove(self) -> None:
        self.batch_norm.eps = self.eps
        super().remove()


class SumBlock(canonizers.AttributeCanonizer):  # type: ignore[misc,name-defined]
    """What zennit's canonizer for ResNets does, for the zoo's block: the residual sum becomes a module of its own."""

    def __init__(self) -> None:
        super().__init__(self._attributes)

    @staticmethod
    def _attributes(name: str, module: nn.Module) -> dict[str, Any] | None:
        if not hasattr(module, "downsample"):
            return None
        return {"forward": SumBlock.forward.__get__(module), "canonizer_sum": layer.Sum()}

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        """The block's forward with the sum as a module."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.canonizer_sum(torch.stack([out, identity], -1)))

    def copy(self) -> SumBlock:
        return SumBlock()


def _map(convolution: Any, dense: Any) -> Any:
    def make(model_canonizers: list[Any]) -> Any:
        return composites.LayerMapComposite(
            [
                *composites.layer_map_base(),
                (types.Convolution, convolution()),
                (nn.Linear, dense()),
            ],
            canonizers=model_canonizers,
        )

    return make


THEIRS: dict[str, Any] = {
    "epsilon-plus": lambda c: composites.EpsilonPlus(canonizers=c),
    "epsilon-plus-flat": lambda c: composites.EpsilonPlusFlat(canonizers=c),
    "epsilon-alpha2-beta1": lambda c: composites.EpsilonAlpha2Beta1(canonizers=c),
    "epsilon-alpha2-beta1-flat": lambda c: composites.EpsilonAlpha2Beta1Flat(canonizers=c),
    "epsilon-gamma-box": lambda c: composites.EpsilonGammaBox(low=-4.0, high=5.0, canonizers=c),
    "epsilon": _map(rules.Epsilon, rules.Epsilon),
    "gamma": _map(rules.Gamma, rules.Gamma),
    "z-plus": _map(rules.ZPlus, rules.ZPlus),
    "alpha2-beta1": _map(rules.AlphaBeta, rules.AlphaBeta),
}


def _theirs(model: nn.Module, x: Tensor, weights: Tensor, composite: Any) -> Tensor:
    """zennit starts from a gradient that is relevance: the output at the target."""
    x = x.clone().requires_grad_()
    with composite.context(
        copy.deepcopy(model)
    ) as modified:  # zennit 1.0 leaves parameters in other places than it found them
        out = modified(x)
        (relevance,) = torch.autograd.grad(out, x, out.detach() * weights)
    return relevance


def _model(name: str) -> tuple[nn.Module, Tensor]:
    model, batch = build_tiny(name)
    model = model.double().eval()
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # norms that do something
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    return model, batch["input"].double()


@pytest.mark.parametrize("name", ["mlp", "vgg-bn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_equals_zennit(name: str) -> None:
    model, x = _model(name)
    target = torch.tensor([1, 0, 2])
    weights = torch.nn.functional.one_hot(target, model(x).shape[-1]).double()
    for composite, make in THEIRS.items():
        merges = [Merge(), SumBlock()]
        expected = _theirs(model, x, weights, make(merges))
        rules_here = epsilon_gamma_box(-4.0, 5.0) if composite == "epsilon-gamma-box" else composite
        found = lfpgraph.attribute(model, x, target=target, composite=rules_here)
        assert relative(found, expected) < 1e-6, f"{composite}: {relative(found, expected)}"
