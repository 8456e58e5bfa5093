"""Composites of the LRP and LFP papers, by the names and with the parameters of the papers and of zennit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..graph.graph import OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..registry import ACTIVATION, Handler, Rule
from ..rules.linear import CONVOLUTIONS, DENSE
from ..rules.lrp import products as lrp
from ..rules.lrp import rescale, transformer
from .composite import Composite, Ruleset

__all__ = ["CONVOLUTIONS", "DENSE", "deep_taylor", "epsilon_gamma_box", "layer_composite"]

aten = torch.ops.aten


def layer_composite(
    name: str,
    *,
    convolution: Handler | Rule = lrp.epsilon_rule,
    dense: Handler | Rule = lrp.epsilon_rule,
    first: Handler | Rule | None = None,
    first_convolution: Handler | Rule | None = None,
    epsilon: float = 1e-6,
    others: Mapping[Any, Handler | Rule] | None = None,
    merge_norms: bool = True,
    scale: str = "weight",
) -> Composite:
    """A composite that gives layers a rule by their kind: zennit's layer map, per operation.

    Args:
        name: how the composite is called in messages; `register_composite` makes it selectable.
        convolution, dense: the rule of convolutions and of all other products with weights; see `lfpgraph.rules.lrp`.
        first: the rule of the first layers of any kind; `first_convolution` of first layers that are convolutions.
        epsilon: the stabilizer of what has the epsilon rule, sums and pools among it.
        others: rules of other operations, or families of them. A norm that could not be merged hands its reward on
            unchanged unless they say otherwise.
        merge_norms: merge batch norms into the layer before (for `attribute`).
        scale: as in `Ruleset`.
    """
    handlers: dict[Any, Handler | Rule] = {"normalisation": transformer.identity_norm, **(others or {})}
    handlers |= dict.fromkeys(CONVOLUTIONS, convolution) | dict.fromkeys(DENSE, dense)
    composite = Composite(name, Ruleset(epsilon=epsilon, scale=scale, handlers=handlers), merge_norms=merge_norms)
    firsts = dict.fromkeys((*CONVOLUTIONS, *DENSE), first) if first is not None else {}
    if first_convolution is not None:
        firsts |= dict.fromkeys(CONVOLUTIONS, first_convolution)
    return composite.at_depth(0, 1, handlers=handlers | firsts) if firsts else composite


def epsilon_gamma_box(
    low: float | tuple[float, ...] = -3.0,
    high: float | tuple[float, ...] = 3.0,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
) -> Composite:
    """Epsilon for dense layers, gamma for convolutions, the box rule for a convolution that comes first.

    Args:
        low, high: the least and greatest value an input can have, one number or one for each channel. The defaults suit
            standardised images; the rule is only right for the true bounds.
    """
    return layer_composite(
        "epsilon-gamma-box",
        convolution=lrp.Gamma(gamma=gamma),
        first_convolution=lrp.Box(low=low, high=high),
        epsilon=epsilon,
    )


def deep_taylor(low: float | tuple[float, ...] = -3.0, high: float | tuple[float, ...] = 3.0) -> Composite:
    """Deep Taylor decomposition (Montavon et al. 2017): the box rule for the first layer, z-plus for all others."""
    return layer_composite("deep-taylor", convolution=lrp.ZPlus(), dense=lrp.ZPlus(), first=lrp.Box(low=low, high=high))


def _activations(graph: OpGraph) -> Structure:
    """Activations written out are one function each; norms are not, since their operations' multipliers add up by themselves."""
    return Structure([region for region in find_regions(graph) if region.family is ACTIVATION])


def deeplift() -> Composite:
    """DeepLIFT's rescale rule (Shrikumar et al. 2017) for every operation: differences from the run at the baseline."""
    rules = Ruleset(epsilon=0.0, handlers=rescale.HANDLERS)
    return Composite("deeplift", rules, merge_norms=True, structure=_activations, compares=True)


def lrp_composites() -> list[Composite]:
    """The composites of LRP for attribution, and for training where a rule serves both."""
    zplus, alpha2_beta1, flat, gamma = lrp.ZPlus(), lrp.AlphaBeta(), lrp.Flat(), lrp.Gamma()
    everywhere = {
        "gamma": gamma,
        "z-plus": zplus,
        "alpha2-beta1": alpha2_beta1,
        "w-square": lrp.WSquare(),
        "flat": flat,
    }
    composites = [
        layer_composite("lrp-0", epsilon=0.0),
        layer_composite("epsilon"),
        layer_composite("epsilon-plus", convolution=zplus),
        layer_composite("epsilon-plus-flat", convolution=zplus, first=flat),
        layer_composite("epsilon-alpha2-beta1", convolution=alpha2_beta1),
        layer_composite("epsilon-alpha2-beta1-flat", convolution=alpha2_beta1, first=flat),
        epsilon_gamma_box(),
        deep_taylor(),
        deeplift(),
    ]
    for name, handler in everywhere.items():
        composites.append(layer_composite(name, convolution=handler, dense=handler))
        training = layer_composite(f"lfp-{name}", convolution=handler, dense=handler, merge_norms=False)
        # For training a norm keeps the rule it has under lfp-epsilon.
        handlers = {k: v for k, v in training.default.handlers.items() if k != "normalisation"}
        composites.append(replace(training, default=replace(training.default, handlers=handlers)))
    norm: dict[Any, Handler | Rule] = {"normalisation": transformer.DETACHED_NORM}
    constant_weights: dict[Any, Handler | Rule] = {
        "softmax": transformer.STILL_SOFTMAX,
        "attention": transformer.value_attention,
        aten.mul.Tensor: transformer.gated_product,
    }
    composites.append(layer_composite("attnlrp", epsilon=0.0, others=norm))
    composites.append(layer_composite("cp-lrp", epsilon=0.0, others=norm | constant_weights))
    return composites
