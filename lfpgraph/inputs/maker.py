"""Makes tensors that fit a model: on its device, in its dtype, seeded."""

from __future__ import annotations

import contextlib
from collections import Counter
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
