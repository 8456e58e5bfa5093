"""A LightningModule whose network learns by reward, with Lightning's own Trainer.

pip install lightning
python examples/lightning_module.py
"""

from __future__ import annotations

import argparse

import lightning
import torch
from lfpgraph.models_zoo.digits import cnn
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lfpgraph
from lfpgraph.demo.data import digits


class Digits(lightning.LightningModule):
    """Wrap the network inside, not the LightningModule: its own forward is never traced."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lfpgraph.wrap(cnn())
        self.reward = lfpgraph.rewards.Softmax()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Minus the mean reward."""
        x, y = batch
        outputs = self.network(x)
        return lfpgraph.reward_loss(outputs, self.reward(outputs, y)) / len(x)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, y = batch
        self.log("accuracy", (self.network(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(argv: list[str] | None = None) -> float:
    """Train; returns the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args(argv)
    lightning.seed_everything(0, verbose=False)
    train, test = digits()
    trainer = lightning.Trainer(
        max_epochs=options.epochs, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        Digits(),
        DataLoader(TensorDataset(*train), batch_size=64, shuffle=True),
        DataLoader(TensorDataset(*test), batch_size=450),
    )
    score = float(trainer.callback_metrics["accuracy"])
    print(f"held-out accuracy {score:.3f}")
    return score


if __name__ == "__main__":
    main()
