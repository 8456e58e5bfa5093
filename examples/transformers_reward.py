"""`transformers.Trainer`, not subclassed, trains a ViT by a reward that is no loss: `compute_loss_func`.

python examples/transformers_reward.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from lfpgraph.models_zoo.digits import vit
from transformers import Trainer, TrainingArguments, set_seed

import lfpgraph
from lfpgraph.demo.data import digits

REWARD = lfpgraph.rewards.Softmax()


def reward_as_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Minus the mean reward; the Trainer says how many labels make a step when it accumulates batches."""
    reward = REWARD(outputs.logits, labels)  # any tensor of the logits' shape
    return lfpgraph.reward_loss(outputs.logits, reward) / (num_items_in_batch or len(labels))


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right answers, for `compute_metrics`."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> float:
    """Train; returns the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(argv)
    set_seed(0)
    torch.set_num_threads(1)  # a model this small gains nothing from more
    train, test = ([{"pixel_values": x, "labels": y} for x, y in zip(*part)] for part in digits())
    model = lfpgraph.wrap(vit())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            save_strategy="no",
            logging_strategy="epoch",
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=test,
            compute_loss_func=reward_as_loss,
            compute_metrics=accuracy,
        )
        trainer.train()
        score = trainer.evaluate()["eval_accuracy"]
    print(f"held-out accuracy {score:.3f}")
    return score


if __name__ == "__main__":
    main()
