"""A bandit on digits: for each picture the environment looks at one guess and says right or wrong, and never the label.

    python examples/bandit_digits.py

There is no loss to differentiate: the answers are plain numbers from a function that could be a person or a program.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.rewards import ScalarReward


def environment(labels: Tensor) -> Callable[[Tensor], list[float]]:
    """Knows the labels; answers 1.0 to a right guess and 0.0 to a wrong one."""
    return lambda guesses: [float(guess == label) for guess, label in zip(guesses.tolist(), labels.tolist())]


def main(epochs: int, seed: int) -> float:
    """Train, and print how often the environment is pleased; returns the accuracy on held-out pictures."""
    torch.manual_seed(seed)
    (x, y), (test_x, test_y) = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    lfpgraph.wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    reward = ScalarReward(baseline="none")  # a wrong guess says nothing; a right one is to be made again
    accuracy = 0.0
    for epoch in range(epochs):
        pleased = 0.0
        for rows in torch.randperm(len(x)).split(64):
            outputs = model(x[rows])
            guesses = reward.sample(outputs, explore=0.1)
            answers = environment(y[rows])(guesses)
            optimizer.zero_grad()
            (lfpgraph.reward_loss(outputs, reward(outputs, answers, guesses)) / len(rows)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            pleased += sum(answers)
        with torch.no_grad():
            accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: {pleased / len(x):.1%} of guesses right, {accuracy:.1%} of held-out pictures")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
