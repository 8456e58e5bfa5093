"""scikit-learn's digits: 1,797 real images of 8 x 8, bundled with the package."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Arrays", "digits"]

Arrays = tuple[Tensor, Tensor]


def digits(held_out: int = 450, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Training and held-out images [n, 1, 8, 8], standardised, and labels [n]; the split is fixed by `seed`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(data.target, dtype=torch.long)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    train_x, test_x = x[held_out:], x[:held_out]
    mean, spread = train_x.mean(), train_x.std()
    return ((train_x - mean) / spread, y[held_out:]), ((test_x - mean) / spread, y[:held_out])
