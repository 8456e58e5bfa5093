"""A first layer, linear or a convolution, and a linear one behind it: for tests that work out a step by hand."""

from __future__ import annotations

from torch import nn

__all__ = ["TwoLayers"]


class TwoLayers(nn.Module):
    """Layers `a` and `b` without biases, of inputs [n, 6] or, with a convolution, [n, 1, 4, 4]; forward is a subclass's."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3, bias=False) if convolution else nn.Linear(6, 5, bias=False)
        self.b = nn.Linear(12 if convolution else 5, 3, bias=False)
