"""Makes `lfprop_rewards.npz` with the reward functions of the published lfprop 1.0.0 (they need torch alone):

    pip download --no-deps lfprop==1.0.0 && unzip lfprop-1.0.0-py3-none-any.whl -d lfprop_source
    python tests/golden/make_rewards_golden.py lfprop_source/lfprop/rewards/reward_functions.py

Keys: `name/{outputs,labels,reward}`, float64. Outputs hold a tie and an exact zero.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("reward_functions", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str) -> None:
    theirs = _load(path)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    outputs = 2 * torch.randn(9, 4)
    outputs[0, 1] = 0.0
    outputs[1, 2] = outputs[1, 0]
    labels = torch.where(torch.arange(9) % 2 == 0, outputs.argmax(1), torch.randint(4, (9,)))
    spikes = (torch.rand(7, 9, 4) < torch.rand(9, 4)).double()
    bounds = {"lower_bound": 0.1, "higher_bound": 0.7}
    cases: dict[str, tuple[Any, Tensor, Tensor]] = {
        "binary_sigmoid": (theirs.BinarySigmoidLossReward("cpu"), outputs, torch.randint(2, (9, 4))),
        "bounded_softmax": (theirs.BoundedSoftmaxReward("cpu", **bounds), outputs, labels),
        "bounded_softmax_sign": (theirs.BoundedSoftmaxReward("cpu", logit_sign_only=True, **bounds), outputs, labels),
        "correct": (theirs.CorrectclassificationReward("cpu"), outputs, labels),
        "maximize": (theirs.MaximizeSingleNeuron("cpu"), outputs[:, :1], labels),
        "minimize": (theirs.MinimizeSingleNeuron("cpu"), outputs[:, :1], labels),
        "misclassification": (theirs.MisclassificationReward("cpu"), outputs, labels),
        "sigmoid": (theirs.SigmoidLossReward("cpu"), outputs, labels),
        "softmax": (theirs.SoftmaxLossReward("cpu"), outputs, labels),
        "spikes": (theirs.SnnCorrectClassRewardSpikesRateCoded("cpu"), spikes, labels),
    }
    arrays: dict[str, np.ndarray] = {}
    for name, (function, given, target) in cases.items():
        reward = function(given, target)
        arrays |= {f"{name}/outputs": given.numpy(), f"{name}/labels": target.numpy(), f"{name}/reward": reward.numpy()}
        print(name, float(reward.abs().sum()))
    np.savez_compressed(Path(__file__).parent / "lfprop_rewards.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
