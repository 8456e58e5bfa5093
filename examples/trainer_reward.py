"""`lfpgraph.Trainer` with a reward, an update policy, checkpoints and logs, on scikit-learn's digits.

python examples/trainer_reward.py --folder run            # stop it with Ctrl-C, or kill it
python examples/trainer_reward.py --folder run            # and it goes on where it was
torchrun --nproc-per-node 2 examples/trainer_reward.py    # the same numbers from two processes, to rounding
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.training.policies import AdaptiveClip


def main(argv: list[str] | None = None) -> float:
    """Train a CNN of step functions, which backprop cannot train; returns the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="for checkpoints and logs; none without")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    train, test = digits()
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), Step(), nn.Linear(64, 10))
    trainer = lfpgraph.Trainer(
        model,
        train,
        test,
        reward=lfpgraph.rewards.Softmax(),
        policies=[AdaptiveClip(0.16, exclude="5.*")],
        lr=3e-3,
        scheduler="onecycle",
        epochs=options.epochs,
        batch_size=64,
        metrics=["accuracy"],
        monitor="eval_accuracy",
        patience=5,
        folder=options.folder,
    )
    outcome = trainer.train(resume="auto")
    print(f"{outcome.reason} after {outcome.steps} steps: held-out accuracy {outcome.metrics['eval_accuracy']:.3f}")
    return outcome.metrics["eval_accuracy"]


class Step(nn.Module):
    """1 where the input is positive, else 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype)


if __name__ == "__main__":
    main()
