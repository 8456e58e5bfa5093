"""NoProp: equal blocks learn, each by itself, to denoise the label; nothing travels from one to the next while they learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...composites.rivals import fixed_random
from ...errors import InputError
from ..examples import IGNORED
from ..learners import Learner, Loss
from ..local.block import signature
from ..local.blocks import Blocks, ByMode, Flow

__all__ = ["NoProp", "equal_blocks", "schedule"]

_LEAST = 0.05  # the share of the label in z_0, and of noise in z_T


class NoProp(Learner):
    """NoProp-DT (Li, Teh and Pascanu 2025, equations 4 to 8) on a model of T equal blocks between a stem and a tail.

    With u_y a fixed random embedding of class y, and z_t ~ N(sqrt(A_t) u_y, 1 - A_t) the label with noise, A_0 < ... < A_T:

        v_t(z, x) = sum_c softmax(tail(block_t(stem(x) + z)))_c u_c
        loss = sum_t (SNR(t) - SNR(t-1)) / 2 * mean || v_t(z_{t-1}, x) - u_y ||^2,     SNR(t) = A_t / (1 - A_t)

    z is added to each position of the stem's activation. The answer starts from noise z_0 and is denoised block by block:

        z_t = a_t v_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) e,   e ~ N(0, 1),   r = A_{t-1} / A_t,
        a_t = sqrt(A_t) (1 - r) / (1 - A_{t-1}),   b_t = sqrt(r) (1 - A_t) / (1 - A_{t-1}),
        c_t = (1 - A_t) (1 - r) / (1 - A_{t-1});

    the logits are the last block's. (In the paper the embedding may be learnt, and blocks are made for the purpose.)
    """

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any) -> None:
        super().__init__(model, loss, inputs)
        self._blocks = ByMode(model, early=True)
        blocks = self._blocks(inputs)
        if blocks.graph.mutations:
            raise InputError("noprop keeps no running statistics, so it cannot train a model with batch norms")
        self.start, self.period, self.count = equal_blocks(blocks)
        shapes = blocks.shapes()
        self.shape, self.classes = shapes[self.start - 1], shapes[-1][-1]
        self.width = self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    def _embedding(self, like: Tensor) -> Tensor:
        """u, [classes, width], of unit mean square."""
        return fixed_random(torch.Size([self.classes, self.width]), 0, like) * math.sqrt(3 * self.width)

    def _denoised(self, blocks: Blocks, flow: Flow, t: int, h: Tensor, z: Tensor) -> Tensor:
        """The logits that block t (from 0) and the tail make of the stem's activation and z."""
        places = (..., None, None) if len(self.shape) == 3 else (slice(None), None) if len(self.shape) == 2 else ()
        x = h + (z[places] if places else z)
        first = self.start + t * self.period
        for k in (*range(first, first + self.period), *range(self.start + self.count * self.period, len(blocks))):
            x = flow.apart(k, x, {})
        return x

    def _stem(self, flow: Flow) -> Tensor:
        h = flow.run(0)
        for k in range(1, self.start):
            h = flow.apart(k, h, {})
        return h

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        if labels.is_floating_point() or labels.dim() != 1:
            raise InputError("noprop needs one class for each row as labels")
        blocks, counted = self._blocks(inputs), labels != IGNORED
        flow, shares = blocks.flow(inputs), schedule(self.count)
        stem = self._stem(flow)
        h = stem.detach().requires_grad_()
        u = self._embedding(h)
        target = u[labels.clamp(min=0)]
        for t in range(self.count):
            z = math.sqrt(shares[t]) * target + math.sqrt(1 - shares[t]) * torch.randn_like(target)
            found = self._denoised(blocks, flow, t, h, z).softmax(-1) @ u
            weight = (shares[t + 1] / (1 - shares[t + 1]) - shares[t] / (1 - shares[t])) / 2
            (weight * (found - target)[counted].square().sum(1).mean()).backward()
        if stem.requires_grad:
            stem.backward(h.grad)

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Tensor:
        blocks = self._blocks(inputs)
        flow, shares = blocks.flow(inputs), schedule(self.count)
        h = self._stem(flow)
        u, logits = self._embedding(h), h
        z = torch.randn(len(h), self.width, dtype=h.dtype, device=h.device)
        for t in range(self.count):
            logits = self._denoised(blocks, flow, t, h, z)
            before, after = shares[t], shares[t + 1]
            ratio = before / after
            a = math.sqrt(after) * (1 - ratio) / (1 - before)
            b = math.sqrt(ratio) * (1 - after) / (1 - before)
            c = (1 - after) * (1 - ratio) / (1 - before)
            z = a * (logits.softmax(-1) @ u) + b * z + math.sqrt(c) * torch.randn_like(z)
        return logits


def schedule(count: int) -> list[float]:
    """A_0 ... A_T, the share of the label: a squared sine, kept away from 0 and 1."""
    shares = [math.sin(math.pi / 2 * t / count) ** 2 for t in range(count + 1)]
    return [_LEAST + (1 - 2 * _LEAST) * share for share in shares]


def equal_blocks(blocks: Blocks) -> tuple[int, int, int]:
    """Where a model's equal blocks start, how many of its cut blocks make one of them, and how many there are.

    Raises:
        InputError: there are not two of them between a stem and a tail.
    """
    kinds = [signature(block) for block in blocks.blocks]
    shapes = blocks.shapes()
    best = (0, 0, 0)
    for start in range(1, len(kinds)):
        for period in range(1, (len(kinds) - start) // 2 + 1):
            count = 1
            while kinds[start : start + period] == kinds[start + count * period : start + (count + 1) * period]:
                count += 1
            ends = start + count * period < len(kinds) and shapes[start - 1] == shapes[start + period - 1]
            if count > 1 and ends and count * period > best[1] * best[2]:
                best = (start, period, count)
    if not best[2] or any(block.late for block in blocks.blocks):
        raise InputError(
            "noprop needs equal blocks, one behind the other, between a stem and a tail; this model has none"
        )
    return best
