"""Makes tensors that fit a model: on its device, in its dtype, seeded."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TensorMaker"]


class TensorMaker:
    """Makes tensors on a model's device and in its dtype, fake ones where the model's are; seeded."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        floats = [t for t in tensors if t.is_floating_point()]
        # The device of most of them: some constructors put a parameter on the CPU, whatever the default device is.
        devices = Counter(t.device for t in tensors)
        self.device = devices.most_common(1)[0][0] if devices else torch.device("cpu")
        self.dtype = floats[0].dtype if floats else torch.get_default_dtype()
        self.fake_mode = next((t.fake_mode for t in tensors if hasattr(t, "fake_mode")), None)
        self.seed = 0

    def floats(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return self._make(torch.randn, *shape, generator=self._generator()).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Values between 0 and 1."""
        return self._make(torch.rand, *shape, generator=self._generator()).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` to `high` - 1, int64."""
        return self._make(torch.randint, low, high, shape, generator=self._generator())

    def constant(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        """These values."""
        return self._make(torch.tensor, values, dtype=dtype)

    def full(self, value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """One value everywhere."""
        return self._make(torch.full, shape, value, dtype=dtype)

    def _make(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A tensor drawn on the CPU, so that it is the same on every device, then brought to the model's."""
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        mode: Any = self.fake_mode
        if mode is None or mode in _get_current_dispatch_mode_stack():
            mode = contextlib.nullcontext()
        with mode:
            return function(*args, device="cpu", **kwargs).to(self.device)

    def _generator(self) -> torch.Generator:
        self.seed += 1
        return torch.Generator().manual_seed(self.seed)
