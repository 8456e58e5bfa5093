"""A loop written by hand: wrap, a reward, an update policy on the optimizer.

python examples/plain_loop.py
"""

from __future__ import annotations

import argparse

import torch
from lfpgraph.models_zoo.digits import cnn

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.training.policies import NormalizeByMax, Policies, TopK


def main(argv: list[str] | None = None) -> float:
    """Train; returns the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = digits()
    model = lfpgraph.wrap(cnn())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    Policies(NormalizeByMax(), TopK(0.3, pattern="*weight")).attach(optimizer, model)
    reward = lfpgraph.rewards.Softmax()
    score = 0.0
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(x)).split(64):
            outputs = model(x[rows])
            optimizer.zero_grad()
            lfpgraph.reward_loss(outputs, reward(outputs, y[rows])).backward()
            optimizer.step()
        with torch.no_grad():
            score = (model(test_x).argmax(-1) == test_y).float().mean().item()
        print(f"epoch {epoch + 1}: held-out accuracy {score:.3f}")
    return score


if __name__ == "__main__":
    main()
