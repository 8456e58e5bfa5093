"""Rewards without a right answer for each output: energy, correlation and contrast. Losses are means over the batch's rows.

As everywhere, rewards are summed over the batch, and `reward_loss(outputs, reward) / len(outputs)` is the loss given here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import RewardError
from .checks import check_positive, like_outputs, numbers

__all__ = ["Contrast", "Correlation", "Energy"]


class Energy:
    """Low energy for data, high energy for what is none: `L = mean(E of data) - mean(E of others) + decay * mean(E^2)`.

    So `r = -o * dL/do`, times the number of rows. Sources: contrastive divergence (Hinton 2002), with the decay of Du and
    Mordatch 2019 (arXiv 1903.08689), section 3.2; for classes Grathwohl et al. 2020 (arXiv 1912.03263), eq. 6.

    Outputs are energies [n] or [n, 1]; or logits [n, c], whose energy is `-logsumexp(o)`. Labels are true for data, [n].

    Args:
        decay: keeps energies near zero; without it their difference grows without end.

    Raises:
        RewardError: shapes that do not fit; a batch without data or without others.
    """

    def __init__(self, decay: float = 0.0) -> None:
        if not (isinstance(decay, int | float) and decay >= 0 and math.isfinite(decay)):
            raise RewardError(f"decay must be a number of zero or more; got {decay}")
        self.decay = decay

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs, labels = outputs.detach(), numbers(labels)
        rows = outputs if outputs.dim() == 2 else outputs.unsqueeze(-1)
        if rows.dim() != 2 or labels.numel() != len(rows):
            raise RewardError(
                f"Energy needs outputs [n] or [n, c] and labels [n]; got {list(outputs.shape)}, {list(labels.shape)}"
            )
        data = labels.reshape(-1, 1).to(rows.device) != 0
        n, own = len(rows), data.sum()
        if n and not 0 < int(own) < n:
            raise RewardError(f"Energy needs data and others in a batch; {int(own)} of {n} rows are data")
        energy = rows if rows.shape[1] == 1 else -rows.logsumexp(1, keepdim=True)
        wanted = torch.where(data, -n / own, n / (n - own)).to(rows) - 2 * self.decay * energy  # -n dL/dE
        signal = wanted if rows.shape[1] == 1 else -wanted * rows.softmax(1)
        return (rows * signal).reshape(outputs.shape)


class Correlation:
    """Every output follows its target over the batch, in whatever size and from whatever zero: `L = sum(1 - rho)`.

    With `o' = o - mean(o)` of a column and rho the correlation of o and t, `d rho / do = (t' / |t'| - rho o' / |o'|) / |o'|`, and
    `r = n o d rho / do`. Source: Pearson's correlation; a network is trained by it in Fahlman and Lebiere 1990.

    Outputs [n, ...], targets of as many entries. What does not vary over the batch has no correlation and gets no reward.
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach()
        if not outputs.dim():
            raise RewardError("Correlation needs a batch of outputs, [n, ...]")
        (o, size), (t, spread) = _centred(outputs), _centred(like_outputs(outputs, targets, "targets"))
        rho = (o * t).sum(0, keepdim=True)
        signal = torch.where((size > 0) & (spread > 0), len(outputs) * (t - rho * o) / size, 0.0)
        return outputs * signal


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of mean 0 and norm 1, and what their norm was; 0 for columns that do not vary but by rounding."""
    centred = x - x.mean(0, keepdim=True)
    size = torch.linalg.vector_norm(centred, dim=0, keepdim=True)
    noise = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=0, keepdim=True)
    size = torch.where(size > noise, size, 0.0)
    return centred / torch.where(size > 0, size, 1.0), size


class Contrast:
    """Rows of one label lie together, others apart: outputs [n, d], labels [n] of any numbers.

    With `z = o / |o|`, `S = z z' / temperature` and P(i) the other rows with the label of row i,

        L = mean over i of  -mean over p in P(i) of  log( exp(S_ip) / sum over a != i of exp(S_ia) )

    a row without another of its label is left out of the outer sum. Sources: Khosla et al. 2020 (arXiv 2004.11362), eq. 2; with
    each label twice, for two views of a sample, NT-Xent of SimCLR, Chen et al. 2020 (arXiv 2002.05709), eq. 1.

    Args:
        temperature: above 0.

    Raises:
        RewardError: shapes that do not fit; no two rows of a label.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        check_positive("temperature", temperature)
        self.temperature = temperature

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs, labels = outputs.detach(), numbers(labels)
        if outputs.dim() != 2 or labels.shape != outputs.shape[:1]:
            raise RewardError(
                f"Contrast needs outputs [n, d] and labels [n]; got {list(outputs.shape)}, {list(labels.shape)}"
            )
        labels = labels.to(outputs.device)
        itself = torch.eye(len(outputs), dtype=torch.bool, device=outputs.device)
        mates = (labels[:, None] == labels) & ~itself
        count = mates.sum(1, keepdim=True)
        if len(outputs) and not bool(mates.any()):
            raise RewardError("Contrast needs two rows of a label in a batch; all labels are different")
        size = torch.linalg.vector_norm(outputs, dim=1, keepdim=True).clamp_min(torch.finfo(outputs.dtype).tiny)
        z = outputs / size
        near = (z @ z.mT / self.temperature).masked_fill(itself, -math.inf).softmax(1)
        pull = torch.where(count > 0, mates / count.clamp_min(1) - near, 0.0) * (
            len(z) / (count > 0).sum().clamp_min(1)
        )
        towards = (pull + pull.mT) @ z / self.temperature  # -n dL/dz
        return outputs * (towards - z * (towards * z).sum(1, keepdim=True)) / size
