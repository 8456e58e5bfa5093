"""Local losses: each block of a model learns by a loss of its own, and no gradient crosses from one block to another.

Block k makes h_k = f_k(h_{k-1}; w_k), where h_{k-1} is a constant to it, and its weights move along the gradient of L_k alone:

    dw_k = - rate * dL_k / dw_k,    L_k = loss(head_k(h_k), y),    L_K = loss(f_K(h_{K-1}), y) for the last block.

A block's backward pass runs as soon as its forward pass is over, so the activations of one block alone are kept at a time; and
where h_k is large beside them, it is made again for block k+1, so that it does not lie beside its own gradient (`Flow.learn`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...composites.rivals import fixed_random
from ...errors import InputError
from ..examples import IGNORED
from ..learners import Learner, Loss
from .blocks import Blocks, Flow, backward
from .heads import Averaged, Head, LaterLayers

__all__ = [
    "AugLocal",
    "ForwardGNN",
    "LocalLosses",
    "MomentumAuxiliary",
    "TargetProjection",
    "labelled",
    "one_hot",
]


class LocalLosses(Learner):
    """Plain local losses: head_k is a linear layer (Belilovsky et al. 2019; Nokland and Eidnes 2019, the prediction loss).

    Where h_k has the shape that the model's last block takes, it is a copy of that block (see `Head`).

    Args:
        early: cut before activations, which keeps less: a block's own activation is then no other tensor than what it hands on.
    """

    early = True

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any) -> None:
        super().__init__(model, loss, inputs)
        self.blocks, self.example = Blocks(model, inputs, self.early), inputs
        self.heads = nn.ModuleList()
        self.reset()

    def reset(self) -> None:
        flow = self.blocks.flow(self.example)
        self.heads = nn.ModuleList()
        with torch.no_grad():
            for k in range(len(self.blocks) - 1):
                x = flow.run(k)
                self.heads.append(self.head(k, x, flow))
                flow.hand_over(k, x)

    def head(self, k: int, x: Tensor, flow: Flow) -> Head:
        """What block k learns by, for an example of its activation."""
        return Head(self.blocks, k, x, flow)

    def more_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.heads.parameters() if p.requires_grad]

    def kept(self) -> list[Tensor]:
        return [p for p in self.heads.parameters() if not p.requires_grad]

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        self.follow()
        flow = self.blocks.flow(inputs)
        last = len(self.blocks) - 1
        for k in range(last):
            flow.learn(k, partial(self._loss_of, k, labels, flow))
        backward(self.loss(flow.run(last), labels))

    def _loss_of(self, k: int, labels: Tensor, flow: Flow, x: Tensor) -> Tensor:
        return self.local_loss(k, x, labels, flow)

    def follow(self) -> None:
        """A step begins: let heads follow the model."""

    def local_loss(self, k: int, x: Tensor, labels: Tensor, flow: Flow) -> Tensor:
        """L_k, of the block's activation."""
        return self.loss(self.heads[k](x, flow), labels)


class AugLocal(LocalLosses):
    """AugLocal (Ma, Wu, Luo, Tan and others 2024): head_k is made of later layers of the same model.

        head_k = f_K . f_{s_2} . f_{s_1},   s = `depth` blocks spread evenly over k+1 ... K,

    with weights of its own that start as the model's. (The paper's heads get shallower towards the output; so do these, as
    fewer blocks are left. Its layers are spread evenly, too.)
    """

    depth = 2

    def head(self, k: int, x: Tensor, flow: Flow) -> Head:
        return LaterLayers(self.blocks, k, x, flow, self.depth)


class MomentumAuxiliary(LocalLosses):
    """MAN, the momentum auxiliary network (Su and others 2024): head_k holds a moving average of the next block.

        head_k(h) = head(f_{k+1}(h; v_k) + b_k),   v_k <- m v_k + (1 - m) w_{k+1} at each step,

    where the bias b_k and the head of `LocalLosses` are learnt, and v_k is not: so block k hears what its neighbour has
    learnt.
    """

    momentum = 0.995

    def head(self, k: int, x: Tensor, flow: Flow) -> Head:
        return Averaged(self.blocks, k, x, flow, self.momentum)

    def follow(self) -> None:
        for head in self.heads:
            cast(Averaged, head).follow()


def one_hot(labels: Tensor, outputs: int) -> Tensor:
    """Targets [n, c] of labels: classes become rows of zeros and a one, numbers stay.

    Raises:
        InputError: classes for more than one place of a sample.
    """
    if labels.is_floating_point():
        return labels.flatten(1) if labels.dim() > 1 else labels[:, None]
    if labels.dim() != 1:
        raise InputError(f"this way of training needs one class for each sample, not labels {list(labels.shape)}")
    return nn.functional.one_hot(labels, outputs).float()


def labelled(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat rows of an activation, those that have a label, and their labels.

    Raises:
        InputError: rows and labels are not equally many.
    """
    if len(x) != len(labels):
        raise InputError(f"this way of training needs a label for each row: {len(x)} rows, {len(labels)} labels")
    if labels.is_floating_point():
        return x.flatten(1), labels
    rows = labels != IGNORED
    return (x.flatten(1), labels) if bool(rows.all()) else (x[rows].flatten(1), labels[rows])


class _Headless(LocalLosses):
    """Ways whose local loss is of the activation itself. Cut behind activations."""

    early = False

    def reset(self) -> None:
        """There is nothing to forget."""


class TargetProjection(_Headless):
    """tpSGD (Lomnitz, Daniels, Zhang and Piacentino 2022): each block's target is a fixed random projection of the label.

    L_k = mean over the batch of || P_k y - h_k ||^2, with y one-hot. (P_k is uniform in +-1/sqrt(classes), a hash of its places.)
    """

    def local_loss(self, k: int, x: Tensor, labels: Tensor, flow: Flow) -> Tensor:
        h, labels = labelled(x, labels)
        y = one_hot(labels, self.blocks.shapes()[-1][-1]).to(h)
        matrix = fixed_random(torch.Size([h.shape[1], y.shape[1]]), k, h)
        return (y @ matrix.mT - h).square().sum(1).mean()


class ForwardGNN(_Headless):
    """ForwardGNN's single forward pass (Park and others 2024): rows are to be like the virtual node of their class.

        L_k = cross_entropy(h_v . c_j over the classes j, y_v),   c_j = mean of h_u over the labelled rows u of class j.

    In the paper a virtual node for each class is joined by edges to the labelled nodes of the class; here it takes their mean, so
    that no graph is changed and other models can learn so. The last block learns by the loss, in place of a vote of all blocks.
    """

    def local_loss(self, k: int, x: Tensor, labels: Tensor, flow: Flow) -> Tensor:
        h, labels = labelled(x, labels)
        if labels.is_floating_point():
            raise InputError("forward-gnn needs classes as labels")
        y = one_hot(labels, self.blocks.shapes()[-1][-1]).to(h)
        count = y.sum(0)
        centres = (y.mT @ h) / count.clamp(min=1)[:, None]
        scores = (h @ centres.mT).masked_fill(count == 0, float("-inf"))
        return nn.functional.cross_entropy(scores, labels)
