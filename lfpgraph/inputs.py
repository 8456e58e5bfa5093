"""Example inputs for a model, worked out from the model itself.

A transformers model tells by its forward's arguments and its configuration (`inputs_hf`); any other module by its first
layer. What cannot be told is an `InputError`, never a guess that runs by chance.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError

__all__ = ["TensorMaker", "example_inputs"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_IMAGE = 32


def example_inputs(model: nn.Module, batch: int = 2, length: int = 16) -> Inputs:
    """Positional and keyword inputs that the model can run on: on its device, in its dtype, the same at every call.

    Args:
        model: a transformers model of any kind, or a module whose first layer tells what it takes. It may lie on the
            meta device or hold fake tensors. It may be run once without gradients, to tell which inputs fit.
        batch: how many examples.
        length: tokens of a text, steps of a sequence, frames of encoded sound.

    Raises:
        InputError: the inputs cannot be worked out; the message names the arguments to pass by hand.
    """
    if batch < 1 or length < 1:
        raise InputError(f"batch and length must be at least 1, not {batch} and {length}")
    maker = TensorMaker(model)
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        from .inputs_hf import transformers_inputs

        return (), transformers_inputs(model, maker, batch, length)
    return (_plain(model, maker, batch, length),), {}


class TensorMaker:
    """Makes tensors on a model's device and in its dtype, fake ones where the model's are; seeded."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        floats = [t for t in tensors if t.is_floating_point()]
        # The device of most: some constructors put a parameter on the CPU whatever the default device is.
        devices = Counter(t.device for t in tensors)
        self.device = devices.most_common(1)[0][0] if devices else torch.device("cpu")
        self.dtype = floats[0].dtype if floats else torch.get_default_dtype()
        self.fake_mode = next((t.fake_mode for t in tensors if hasattr(t, "fake_mode")), None)
        self.seed = 0

    def floats(self, *shape: int) -> Tensor:
        """Standard normal values."""
        with self._mode():
            return torch.randn(*shape, generator=self._generator(), device="cpu").to(self.device, self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Values between 0 and 1."""
        with self._mode():
            return torch.rand(*shape, generator=self._generator(), device="cpu").to(self.device, self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` to `high` - 1, int64."""
        with self._mode():
            return torch.randint(low, high, shape, generator=self._generator(), device="cpu").to(self.device)

    def constant(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        """These values."""
        with self._mode():
            return torch.tensor(values, dtype=dtype, device="cpu").to(self.device)

    def full(self, value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """One value everywhere."""
        with self._mode():
            return torch.full(shape, value, dtype=dtype, device=self.device)

    def _generator(self) -> torch.Generator:
        self.seed += 1
        return torch.Generator().manual_seed(self.seed)

    def _mode(self) -> contextlib.AbstractContextManager[Any]:
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        if self.fake_mode is None or self.fake_mode in _get_current_dispatch_mode_stack():
            return contextlib.nullcontext()
        return self.fake_mode


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
    """Whether a chain of layers takes images of this side; nothing is computed."""
    from torch._subclasses import FakeTensorMode

    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            weight = first.weight
            model(torch.empty(2, first.in_channels, side, side, dtype=weight.dtype, device=weight.device))
        return True
    except Exception:
        return False
    finally:
        for module, training in modes.items():
            module.training = training
