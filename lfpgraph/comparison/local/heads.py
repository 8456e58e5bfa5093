"""Auxiliary heads: what turns the activation at a cut into an output of the model's own shape, for a local loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ...errors import InputError
from .blocks import Blocks, Flow

__all__ = ["Adapter", "Averaged", "Copy", "Head", "LaterLayers", "later_blocks", "read_out"]

_SIDE = 2  # images are averaged down to at most so many rows and columns before a flat product,
_WEIGHTS = 2**10  # and to fewer where that product had more weights than this
_FLAT = 2**13  # more numbers than this are averaged over their first dimension


class Adapter(nn.Module):
    """A linear map from activations of one shape to another; nothing at all where they are equal.

    Images [n, c, h, w] to images: averaged to the size, then a product over channels. Equal first dimensions ([n, t, d] to
    [n, t, e]): a product over the last. Else what is left after averaging (images to 2 x 2, long sequences over time) is
    multiplied flat.

    Args:
        x: an example of what comes in. wanted: what is to come out, without the batch.
    """

    def __init__(self, x: Tensor, wanted: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.wanted = tuple(x.shape[1:]), tuple(wanted)
        images = len(self.shape) == len(self.wanted) == 3
        alike = not images and len(self.shape) == len(self.wanted) and self.shape[:-1] == self.wanted[:-1]
        self.kind = "same" if self.shape == self.wanted else "images" if images else "last" if alike else "flat"
        if self.kind == "same":
            return
        if self.kind == "images":
            sizes = self.shape[0], self.wanted[0]
        elif self.kind == "last":
            sizes = self.shape[-1], self.wanted[-1]
        else:
            sizes = math.prod(self._pooled()), math.prod(self.wanted)
            if max(sizes) > _FLAT:
                raise InputError(f"no head leads from activations {list(self.shape)} to {list(wanted)}")
        if self.kind != "images" or sizes[0] != sizes[1]:
            self.linear: nn.Module = nn.Linear(*sizes, device=x.device, dtype=x.dtype)
        else:
            self.linear = nn.Identity()

    def _pooled(self) -> tuple[int, ...]:
        if len(self.shape) == 3:
            most = math.isqrt(max(1, _WEIGHTS // (self.shape[0] * math.prod(self.wanted))))
            return self.shape[0], *(min(n, _SIDE, most) for n in self.shape[1:])
        return self.shape[1:] if len(self.shape) > 1 and math.prod(self.shape) > _FLAT else self.shape

    def forward(self, x: Tensor, flow: Flow | None = None) -> Tensor:
        if self.kind == "same":
            return x
        if self.kind == "images":
            return self.linear(resized(x, self.wanted[1:]).movedim(1, -1)).movedim(-1, 1)
        if self.kind == "last":
            return self.linear(x)
        pooled = self._pooled()
        if len(pooled) == 3:
            x = resized(x, pooled[1:])
        elif pooled != self.shape:
            x = x.mean(1)
        return self.linear(x.flatten(1)).unflatten(1, self.wanted)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images averaged to a smaller size, or repeated to a larger one."""
    height, width = size
    if x.shape[2:] == (height, width):
        return x
    smaller = x.shape[2] >= height and x.shape[3] >= width
    if smaller and x.shape[2] % height == 0 and x.shape[3] % width == 0:  # a mean keeps nothing for its backward pass
        return x.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean((3, 5))
    return adaptive_avg_pool2d(x, (height, width)) if smaller else interpolate(x, (height, width))


class Copy(nn.Module):
    """A block of the model with weights of its own, behind an adapter. Images are halved first where the block takes it."""

    def __init__(self, blocks: Blocks, j: int, x: Tensor, flow: Flow) -> None:
        super().__init__()
        self.j, block, wanted = j, blocks.blocks[j], blocks.shapes()[j - 1]
        state = dict(blocks.model.named_parameters(remove_duplicate=False))
        self.names = block.parameters
        self.weights = nn.ParameterList([state[name].detach().clone() for name in self.names])
        half = [wanted[0], *(-(-n // 2) for n in wanted[1:])]
        self.adapter, self.flat = Adapter(x, half if len(wanted) == 3 else wanted), False
        try:
            found = list(self(x, flow).shape[1:])
        except RuntimeError:  # a flat layer takes images of one size alone
            found = []
        if not found or (j == len(blocks) - 1 and found != blocks.shapes()[-1]):
            self.adapter, self.flat = Adapter(x, wanted), True

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return flow.apart(self.j, self.adapter(x), dict(zip(self.names, self.weights)))


def read_out(blocks: Blocks, x: Tensor, flow: Flow) -> nn.Module:
    """What turns an activation into an output: a copy of the model's last block if that takes this shape, else a linear layer."""
    shapes, last = blocks.shapes(), len(blocks) - 1
    if list(x.shape[1:]) == shapes[last - 1] and not blocks.blocks[last].late:
        return Copy(blocks, last, x, flow)
    return Adapter(x, shapes[last])


def later_blocks(blocks: Blocks, k: int, count: int) -> list[int]:
    """So many of the blocks behind block k, spread evenly, the last one of the model among them."""
    behind = [j for j in range(k + 1, len(blocks)) if not blocks.blocks[j].late]
    if len(blocks) - 1 not in behind:
        raise InputError(
            "the model's last block reads more of earlier ones than one activation, so it is no head for them"
        )
    count = min(count, len(behind))
    places = [round(i * (len(behind) - 1) / max(count - 1, 1)) for i in range(count - 1)]
    return sorted({behind[i] for i in places} | {behind[-1]})


class Head(nn.Module):
    """From a block's activation to an output: a linear layer, or the model's own last block where that takes this very shape.

    The last block knows how the model is read: a ViT by its class token, which a layer over all tokens would teach nothing.

    Args:
        k: the block.
        x: an example of its activation; `flow` has just made it.
    """

    def __init__(self, blocks: Blocks, k: int, x: Tensor, flow: Flow) -> None:
        super().__init__()
        self.last = read_out(blocks, x, flow)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.last(x, flow)


class LaterLayers(Head):
    """Copies of later blocks of the same model, the last one among them, so that it answers what the model answers.

    A flat layer over whole images is left out unless it is the last: it would cost more than the block that is to learn.
    """

    def __init__(self, blocks: Blocks, k: int, x: Tensor, flow: Flow, count: int) -> None:
        nn.Module.__init__(self)
        self.copies = nn.ModuleList()
        for j in later_blocks(blocks, k, count):
            copy = Copy(blocks, j, x, flow)
            if j == len(blocks) - 1 or not copy.flat:
                self.copies.append(copy)
                x = copy(x, flow)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        for copy in self.copies:
            x = copy(x, flow)
        return x


class Averaged(Head):
    """The next block, with a moving average of its weights and a bias that is learnt, then `read_out`."""

    def __init__(self, blocks: Blocks, k: int, x: Tensor, flow: Flow, momentum: float) -> None:
        nn.Module.__init__(self)
        if blocks.blocks[k + 1].late:
            raise InputError(
                f"block {k + 1} of the model reads more of earlier ones than one activation, so it is no head"
            )
        self.momentum, self.copy = momentum, Copy(blocks, k + 1, x, flow)
        self.copy.weights.requires_grad_(False)
        found = self.copy(x, flow)
        self.bias = nn.Parameter(found.new_zeros(found.shape[1:]))
        answers = k + 1 == len(blocks) - 1
        self.last = Adapter(found, found.shape[1:]) if answers else read_out(blocks, found, flow)
        self.source = dict(blocks.model.named_parameters(remove_duplicate=False))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.last(self.copy(x, flow) + self.bias, flow)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights that the next block has now."""
        for name, average in zip(self.copy.names, self.copy.weights):
            average.lerp_(self.source[name].detach(), 1 - self.momentum)
