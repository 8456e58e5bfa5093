"""Canonization on the graph: a batch norm in eval mode becomes part of the layer before it.

A rule that looks at a layer's weights by sign should see what the layer and its norm compute together. (zennit's
MergeBatchNorm does this to modules that it must know; here the graph says which layer a norm follows.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..graph.classes import classify
from ..graph.depths import is_layer
from ..graph.graph import WEIGHT, NodeInfo, OpGraph, family_of

__all__ = ["merge_norms"]

aten = torch.ops.aten
# Position of the weight and of the bias, and the weight's dimension of outputs.
_LAYERS: dict[Any, tuple[int, int, int]] = {
    aten.addmm.default: (2, 0, 1),
    aten.conv1d.default: (1, 2, 0),
    aten.conv1d.padding: (1, 2, 0),
    aten.conv2d.default: (1, 2, 0),
    aten.conv2d.padding: (1, 2, 0),
    aten.conv3d.default: (1, 2, 0),
    aten.conv3d.padding: (1, 2, 0),
    aten.conv_transpose1d.default: (1, 2, 1),
    aten.conv_transpose2d.input: (1, 2, 1),
    aten.conv_transpose3d.input: (1, 2, 1),
    aten.linear.default: (1, 2, 0),
}
# Position of the flag that is True in training (None where the norm never trains), and of eps.
_TRAINING_FLAG: dict[Any, tuple[int | None, int]] = {
    aten._native_batch_norm_legit_no_training.default: (None, 6),
    aten._batch_norm_no_update.default: (None, 6),
    aten.batch_norm.default: (5, 7),
    aten.native_batch_norm.default: (5, 7),
}


def merge_norms(graph: OpGraph) -> int:
    """Merge each batch norm with running statistics into the layer that alone feeds it; in place. How many were merged.

    The layer's weights become `w * scale` and its bias `(b - mean) * scale + beta`, with scale = gamma / sqrt(var + eps),
    as nodes of the graph: it computes the same, to rounding, and the model is not touched.
    """
    merged = [_merge(graph, node) for node in list(graph.operations())]
    if any(merged):
        graph.graph.eliminate_dead_code()
        graph.module.recompile()
        graph.info.clear()
        classify(graph)
    return sum(merged)


def _merge(graph: OpGraph, norm: fx.Node) -> bool:
    if norm.target not in _TRAINING_FLAG:
        return False
    flag, eps_place = _TRAINING_FLAG[norm.target]
    layer = norm.args[0]
    if flag is not None and norm.args[flag] is not False:
        return False
    if not isinstance(layer, fx.Node) or layer.target not in _LAYERS or len(layer.users) != 1:
        return False
    if not is_layer(graph, layer) or not _fits(layer):
        return False
    outputs = [norm] if isinstance(norm.meta.get("val"), Tensor) else [n for n in norm.users if n.args[1] == 0]
    statistics = [n for n in norm.users if n not in outputs] if outputs != [norm] else []
    if len(outputs) != 1 or any(n.users for n in statistics):
        return False
    fused = _fused(graph, layer, norm, norm.args[eps_place])
    fused.meta["nn_module_stack"] = layer.meta.get("nn_module_stack")
    fused.meta["stack_trace"] = layer.meta.get("stack_trace")
    outputs[0].replace_all_uses_with(fused)
    return True


def _fits(layer: fx.Node) -> bool:
    """Whether the layer's outputs are the norm's channels, and each weight belongs to one of them."""
    if layer.target in (aten.linear.default, aten.addmm.default):
        return len(layer.meta["val"].shape) == 2 and not layer.kwargs
    if "transpose" in str(layer.target):
        return len(layer.args) < 7 or bool(layer.args[6] == 1)
    return True


def _fused(graph: OpGraph, layer: fx.Node, norm: fx.Node, eps: Any) -> fx.Node:
    """The layer with the norm's parameters in its own."""
    _, gamma, beta, mean, variance = norm.args[:5]
    weight_place, bias_place, dim = _LAYERS[layer.target]
    args = list(layer.args)
    args += [None] * (bias_place + 1 - len(args))
    weight = args[weight_place]
    rank = len(weight.meta["val"].shape)  # type: ignore[union-attr]
    with graph.graph.inserting_before(norm):  # its parameters may be made after the layer ran

        def call(target: Any, *values: Any) -> fx.Node:
            node = graph.graph.call_function(target, values)
            node.meta["val"] = _value(target, values)
            graph.info[node] = NodeInfo(WEIGHT, graph.info[layer].part, family_of(node))
            return node

        scale = call(aten.rsqrt.default, call(aten.add.Tensor, variance, eps))
        if gamma is not None:
            scale = call(aten.mul.Tensor, gamma, scale)
        shape = [-1 if i == dim else 1 for i in range(rank)]
        args[weight_place] = call(aten.mul.Tensor, weight, call(aten.reshape.default, scale, shape))
        bias = args[bias_place]
        centred = call(aten.neg.default, mean) if bias is None else call(aten.sub.Tensor, bias, mean)
        shift = call(aten.mul.Tensor, centred, scale)
        args[bias_place] = shift if beta is None else call(aten.add.Tensor, shift, beta)
        fused = graph.graph.call_function(layer.target, tuple(args), dict(layer.kwargs))  # type: ignore[arg-type]
        fused.meta["val"] = layer.meta["val"]
        graph.info[fused] = graph.info[layer]
    return fused


def _value(target: Any, values: Any) -> Any:
    """What a new node holds, on the graph's own fake tensors."""
    found = [v.meta["val"] if isinstance(v, fx.Node) else v for v in values]
    mode = next((v.fake_mode for v in found if hasattr(v, "fake_mode")), None)
    with torch.no_grad():
        if mode is None:
            return target(*found)
        with mode:
            return target(*found)
