"""A spiking network of plain torch learns digits by feedback and by its rivals: one argument of `wrap`.

python examples/spiking_digits.py                # lfp-snn with the rate-coded reward
python examples/spiking_digits.py --composite sltt
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.rewards import RateCodedSpikes


class Spiking(nn.Module):
    """Two layers of leaky integrate-and-fire neurons with a hard threshold, unrolled over time."""

    def __init__(self, steps: int = 15, beta: float = 0.9) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 10)
        self.steps, self.beta = steps, beta

    def forward(self, x: Tensor) -> Tensor:
        u1 = u2 = torch.zeros(())
        outputs = []
        for _ in range(self.steps):
            u1 = self.beta * u1 + self.first(x.flatten(1))
            s1 = (u1 > 1).float()
            u1 = u1 - s1
            u2 = self.beta * u2 + self.second(s1)
            s2 = (u2 > 1).float()
            u2 = u2 - s2
            outputs.append(s2)
        return torch.stack(outputs)


def main(composite: str, epochs: int, seed: int) -> float:
    """Train and print the accuracy on held-out digits; returns it."""
    torch.manual_seed(seed)
    (x, y), (test_x, test_y) = digits()
    model = lfpgraph.wrap(Spiking(), composite)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(x) // 64))
    reward, accuracy = RateCodedSpikes(), 0.0
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            spikes = model(x[rows])
            optimizer.zero_grad()
            if composite == "lfp-snn":
                lfpgraph.reward_loss(spikes, reward(spikes, y[rows])).backward()
            else:
                cross_entropy(spikes.sum(0), y[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = (reward.predictions(model(test_x)) == test_y).float().mean().item()
        print(f"epoch {epoch + 1}: {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--composite", default="lfp-snn", choices=lfpgraph.composite_names())
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
