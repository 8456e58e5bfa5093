"""Random generators: their states for a checkpoint, and a block of code that leaves them as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

__all__ = ["keep_random_state", "random_state", "set_random_state"]


@contextlib.contextmanager
def keep_random_state(*used: Any, python: bool = False) -> Iterator[None]:
    """Put torch's generators back at the end: the CPU's, and those of the accelerators that `used` lies on.

    Two such blocks, one after the other, start from the same state and so draw the same numbers.

    Args:
        used: modules, tensors, and containers of tensors. Meta and fake tensors lie on no accelerator.
        python: put back Python's and numpy's generators too.
    """
    states = (random.getstate(), np.random.get_state()) if python else None
    try:
        with torch.random.fork_rng(devices=_accelerators(used)):
            yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _accelerators(used: Any) -> list[int]:
    """Numbers of the accelerators that modules and tensors lie on."""
    accelerator = torch.accelerator.current_accelerator()
    tensors: list[Any] = []
    for leaf in tree_leaves(used):
        tensors += [*leaf.parameters(), *leaf.buffers()] if isinstance(leaf, nn.Module) else [leaf]
    real = [t.device for t in tensors if isinstance(t, Tensor) and not isinstance(t, FakeTensor)]
    return sorted({d.index or 0 for d in real if accelerator is not None and d.type == accelerator.type})


def random_state() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators (CUDA's as well, where it is in use)."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
