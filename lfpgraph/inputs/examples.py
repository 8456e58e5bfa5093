"""Example inputs for a model, worked out from the model itself.

For a transformers model they follow from its forward's arguments and its configuration (`transformers`), for any other
module from its first layer. What cannot be told is an `InputError`, never a guess that runs by chance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modes import eval_mode
from ..threads.silence import quiet
from .maker import TensorMaker

__all__ = ["example_inputs"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_IMAGE = 32


def example_inputs(model: nn.Module, batch: int = 2, length: int = 16) -> Inputs:
    """Positional and keyword inputs that the model can run on: on its device, in its dtype, the same at every call.

    Args:
        model: a transformers model of any kind, or a module whose first layer tells what it takes. It may lie on the
            meta device or hold fake tensors. It may be run without gradients, to find out which inputs fit.
        batch: how many examples.
        length: tokens of a text, steps of a sequence, frames of encoded sound.

    Raises:
        InputError: the inputs cannot be worked out; the message names the arguments to pass by hand.
    """
    if batch < 1 or length < 1:
        raise InputError(f"batch and length must be at least 1, not {batch} and {length}")
    maker = TensorMaker(model)
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        from .transformers import transformers_inputs

        return (), transformers_inputs(model, maker, batch, length)
    return (_plain(model, maker, batch, length),), {}


def _plain(model: nn.Module, maker: TensorMaker, batch: int, length: int) -> Tensor:
    """An input for the first layer that says what it takes."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return maker.floats(batch, module.in_features)
        if isinstance(module, nn.Conv1d):
            return maker.floats(batch, module.in_channels, max(length, module.kernel_size[0]))
        if isinstance(module, nn.Conv2d):
            return maker.floats(batch, module.in_channels, _image_size(model), _image_size(model))
        if isinstance(module, nn.Conv3d):
            return maker.floats(batch, module.in_channels, length, _IMAGE, _IMAGE)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return maker.integers(0, module.num_embeddings, batch, length)
        if isinstance(module, nn.RNNBase):
            shape = (batch, length) if module.batch_first else (length, batch)
            return maker.floats(*shape, module.input_size)
        if isinstance(module, nn.RNNCellBase):
            return maker.floats(batch, module.input_size)
        if next(module.parameters(recurse=False), None) is not None:
            break
    raise InputError(
        f"the inputs of {type(model).__name__} cannot be told from its layers; pass args and kwargs by hand"
    )


def _image_size(model: nn.Module) -> int:
    """The image side at which the first linear layer after convolutions fits, where the network is a plain chain."""
    for side in (_IMAGE, 28, 64, 8, 16, 224, 128, 256):
        if _fits(model, side):
            return side
    return _IMAGE


def _fits(model: nn.Module, side: int) -> bool:
    """Whether a chain of layers takes images of this side; only shapes are worked out."""
    from torch._subclasses import FakeTensorMode

    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    try:
        with quiet(), eval_mode(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            weight = first.weight
            model(torch.empty(2, first.in_channels, side, side, dtype=weight.dtype, device=weight.device))
        return True
    except Exception:
        return False
