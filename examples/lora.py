"""LoRA adapters of PEFT, unmodified, on a small ViT: fine-tuned by LFP, by backprop, and with the head alone.

    pip install peft
    python examples/lora.py --seeds 3

The ViT learns scikit-learn's digits 0 to 4 by backprop; then adapters of rank 4 and a head learn 5 to 9. The adapters' B
matrices start at zero, where LFP's `abs(w) * s` is zero too: lfpgraph gives a wholly zero matrix the plain signal.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from lfpgraph.models_zoo.digits import vit
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.demo.data import digits

WAYS = {"lfp": "lfp", "backprop": None, "head alone, backprop": None}


def halves(part: tuple[Tensor, Tensor], high: bool) -> list[dict[str, Tensor]]:
    """The digits 5 to 9, or 0 to 4, as items of a data set."""
    return [{"pixel_values": x, "labels": y} for x, y in zip(*part) if (y >= 5) == high]


def fit(model: nn.Module, train: Any, test: Any, epochs: int, lr: float, seed: int, composite: str | None) -> float:
    """Train; returns the held-out accuracy."""
    trainer = lfpgraph.Trainer(
        model, train, test, loss=F.cross_entropy, lr=lr, scheduler="onecycle", epochs=epochs, batch_size=64, seed=seed,
        composite=composite, metrics=["accuracy"], eval_every=10**9, progress=False,
    )  # fmt: skip
    return trainer.train().metrics["eval_accuracy"]


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Fine-tune in every way and with every seed; returns the held-out accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, starting at 0")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # of transformers, when PEFT asks
    train, test = digits()
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        base = vit()
        fit(base, halves(train, False), halves(test, False), options.epochs, 1e-3, seed, None)
        for way, composite in WAYS.items():
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=4, target_modules="all-linear", modules_to_save=["classifier"])
            model = peft.get_peft_model(copy.deepcopy(base), config)
            if way.startswith("head"):
                for name, p in model.named_parameters():
                    p.requires_grad_(p.requires_grad and "lora_" not in name)
            score = fit(model, halves(train, True), halves(test, True), options.epochs, options.lr, seed, composite)
            scores[way].append(score)
            print(f"seed {seed}  {way:22} held-out accuracy on 5 to 9: {100 * score:.1f} %", flush=True)
    for way, found in scores.items():
        print(f"{way:22} mean {100 * statistics.mean(found):.1f} %, {100 * min(found):.1f} to {100 * max(found):.1f}")
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


if __name__ == "__main__":
    main()
