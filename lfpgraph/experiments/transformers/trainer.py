"""transformers.Trainer with its default settings, on models with random weights; the sides differ in `lfpgraph.wrap(model)`."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from torch import nn

from ...demo.data import Arrays, digits
from ...optional import need
from ...wrapping.wrapper import wrap
from ..common.data import library_windows
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, accuracy
from ..common.models import seeded

__all__ = ["run"]

PACKAGES = ("asyncio", "email", "encodings", "http", "importlib", "multiprocessing", "unittest", "xml")
LENGTH = 96  # characters of a text
EPOCHS = 3  # the Trainer's own

_IMAGES = {"image_size": 8, "num_channels": 1, "num_labels": 10}
_TEXTS = {"vocab_size": 96, "num_labels": len(PACKAGES), "pad_token_id": 95}  # a tilde, so that no text is padding
SIZES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {
        **_IMAGES, "patch_size": 2, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192,
    },
    "ConvNextForImageClassification": {
        "num_channels": 1, "num_labels": 10, "patch_size": 2, "hidden_sizes": [48, 96], "depths": [2, 2], "num_stages": 2,
    },
    "BertForSequenceClassification": {
        **_TEXTS, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
    },
    "GPT2ForSequenceClassification": {
        **_TEXTS, "n_positions": LENGTH, "n_embd": 128, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0,
    },
}  # fmt: skip


def run(settings: Settings) -> Report:
    """Accuracy on held-out samples after three epochs of AdamW at 5e-5, batches of 8: the Trainer's defaults."""
    need("transformers", "hf", "the experiment trainer")
    sets = {"pixel_values": digits(), "input_ids": library_windows(PACKAGES, LENGTH, training=400, held_out=100)}
    inputs = {kind: "pixel_values" if "Image" in kind else "input_ids" for kind in SIZES}
    sides = {"LFP": True, "backprop": False}

    def one(kind: str, side: str, seed: int) -> dict[str, Any]:
        train, test = sets[inputs[kind]]
        key = {"experiment": settings.experiment, "model": kind, "way": side, "seed": seed, "epochs": EPOCHS}
        key |= {"effort": settings.effort, "samples": len(train[0])}

        def trained() -> dict[str, Any]:
            model = seeded(partial(_model, kind, SIZES[kind]))(seed)
            found = _trained(model, inputs[kind], train, test, sides[side], seed, settings)
            settings.progress(f"{kind} {side} seed {seed}: {found:.4f}")
            return {"accuracy": found}

        return settings.runs.make(key, trained)

    keys = [(kind, side, seed) for kind in SIZES for side in sides for seed in settings.numbers]
    cases = {(kind, side): Case(kind.partition("For")[0], side) for kind in SIZES for side in sides}
    for (kind, side, _), found in zip(keys, settings.runs.together([partial(one, *key) for key in keys])):
        cases[kind, side].values.append(found["accuracy"])
    return Report("trainer", "accuracy", list(cases.values()), draw_bars, (8, 4))


def _trained(
    model: nn.Module, inputs: str, train: Arrays, test: Arrays, wrapped: bool, seed: int, settings: Settings
) -> float:
    """Accuracy after a run of the Trainer, of which nothing is set but the seed, and what it writes and prints."""
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    if wrapped:
        wrap(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            seed=seed,
            num_train_epochs=EPOCHS * settings.effort,
            use_cpu=settings.runs.device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = [{inputs: x, "labels": y} for x, y in zip(*train)]
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    with torch.no_grad():
        logits = [model(**{inputs: x.to(settings.runs.device)}).logits for x in test[0].split(256)]
    return accuracy(torch.cat(logits).cpu(), test[1])


def _model(kind: str, size: dict[str, Any]) -> nn.Module:
    """A model of transformers from its configuration."""
    import transformers

    model_type = getattr(transformers, kind)
    found: nn.Module = model_type(model_type.config_class(**size))
    return found
