"""Derivatives of relevance: a program in operations that autograd can follow, and what is refused in one line.

With `attribute(..., differentiable=True)` the program of an explanation runs under autograd, forward and feedback, so
relevance has a derivative by the inputs and the model's parameters. Rules are plain torch code; only fused operations are
written out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from .. import kernels
from ..errors import AttributionError
from ..passes.attention import attention_backward_written_out, attention_written_out

__all__ = ["Followed", "WRITTEN_OUT", "refuse_transforms"]

aten = torch.ops.aten
# Of these torch has no derivative, or none of a result that rules read (the deviation of a norm, say).
_FUSED = (
    aten._fused_rms_norm, aten._fused_rms_norm_backward, aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional, aten._native_batch_norm_legit_no_training, aten.hardswish_backward,
    aten.mish_backward, aten.native_batch_norm, aten.native_batch_norm_backward, aten.native_group_norm,
    aten.native_group_norm_backward, aten.native_layer_norm, aten.native_layer_norm_backward, aten.silu_backward,
)  # fmt: skip
_CONSTANT = {aten.full_like.default, aten.new_zeros.default, aten.ones_like.default, aten.zeros_like.default}
# What autograd cannot differentiate (again) -> the same in operations that it can.
WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    **get_decompositions(_FUSED),
    **kernels.DECOMPOSITIONS,
    aten._scaled_dot_product_flash_attention_for_cpu.default: attention_written_out,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: attention_backward_written_out,
}


def refuse_transforms(tensors: Iterable[Tensor], differentiable: bool) -> None:
    """Refuse what would get a derivative of zero, or values of no call.

    Raises:
        AttributionError: within a transform of torch.func; dual numbers; autograd is asked for where it is off.
    """
    level = torch._C._functorch.peek_interpreter_stack()
    if level is not None and level.key() != torch._C._functorch.TransformType.Functionalize:
        raise AttributionError(
            f"attribute cannot run within torch.func ({level.key().name.lower()}), which would find derivatives of zero. Take "
            "derivatives by torch.autograd.grad of attribute(..., differentiable=True); a batch needs no vmap"
        )
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise AttributionError(
            "relevance has no forward-mode derivative (dual numbers); take derivatives by torch.autograd.grad of "
            "attribute(..., differentiable=True)"
        )
    if differentiable and (not torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
        raise AttributionError(
            "differentiable=True under torch.no_grad or inference_mode, where nothing has a derivative; leave one of them out"
        )


class Followed(fx.Interpreter):
    """Runs half of a program node by node, so that no derivative is lost without a word."""

    def run_node(self, n: fx.Node) -> Any:
        """As ever; what comes of tensors with a derivative must have one.

        Raises:
            AttributionError: torch has no derivative of an operation, or of one of its results that is used.
        """
        found = super().run_node(n)
        if n.op != "call_function" or n.target in _CONSTANT:
            return found
        source = n.args[0] if n.target is operator.getitem else n
        if isinstance(found, Tensor) and found.is_floating_point() and isinstance(source, fx.Node):
            name = "" if found.grad_fn is None else found.grad_fn.name()
            if "NotImplemented" in name or not name and self._leads_on(n):
                raise AttributionError(
                    f"relevance has no derivative here: torch has none of {source.target} as the rules use it; leave "
                    'differentiable=True out, or take another composite, such as "gradient-x-input"'
                )
        return found

    def _leads_on(self, node: fx.Node) -> bool:
        return any(
            isinstance(t, Tensor) and t.requires_grad
            for t in pytree.tree_leaves([self.env[n] for n in node.all_input_nodes])
        )
