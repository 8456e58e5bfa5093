"""Samples of the steps of recurrent layers."""

from __future__ import annotations

import torch

from .base import call, case

steps = torch.ops.lfpgraph_steps

case(
    [steps.lstm.default],
    lambda t: call(t(3, t.n, 8), t(t.n, 2), t(t.n, 2), t(8, 2), t(8)),
    active=(0, 1, 2),
    weight=(3,),
    bias=(4,),
    empty=False,
)
case(
    [steps.recurrent.default],
    lambda t: call(t(3, t.n, 6), t(t.n, 2), t(6, 2), t(6), "gru"),
    active=(0, 1),
    weight=(2,),
    bias=(3,),
    empty=False,
)
