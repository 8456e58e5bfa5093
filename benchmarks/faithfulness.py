"""How faithful explanations are, ours and others' side by side: `python -m benchmarks.faithfulness --json out.json`.

Three models are trained here by backprop on data that ships with Python's packages: a CNN and a ViT on scikit-learn's
digits, and a two-layer BERT on docstrings (which of three libraries is it from). Every method explains the predicted class
of the same held-out samples. ABPC: area between the least- and the most-relevant-first perturbation curves of the target's
logit, more is better. Comprehensiveness (more is better), sufficiency (less is better), of its probability.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lfpgraph.models_zoo.digits import cnn, vit
from torch import Tensor, nn

import lfpgraph
from lfpgraph.demo.data import digits
from lfpgraph.lrp import epsilon_gamma_box
from lfpgraph.metrics import comprehensiveness, perturbation_curves, sufficiency, token_perturbation

Method = Callable[[nn.Module, Any, Tensor], Tensor]


def _logits(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def _train(model: nn.Module, batches: Callable[[], Any], epochs: int, rate: float, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for inputs, labels in batches():
            out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(_logits(out), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def images(name: str, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained model of digits, and held-out images with their labels."""
    torch.manual_seed(seed)
    (x, y), (test_x, test_y) = digits()
    model = cnn() if name == "cnn" else vit()

    def batches() -> Any:
        for rows in torch.randperm(len(x)).split(64):
            yield x[rows], y[rows]

    return _train(model, batches, 15, 3e-3 if name == "cnn" else 1e-3, -(-len(x) // 64)), test_x, test_y


def text(seed: int, length: int = 32, words: int = 3000) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained BERT of words, held-out token ids [n, length] (0 pads) and labels."""
    from transformers import BertConfig, BertForSequenceClassification

    from examples.finetune_text import docstrings

    torch.manual_seed(seed)
    seen: set[str] = set()
    texts = [
        (t.lower().split()[:length], k)
        for k, lib in enumerate(("torch", "scipy", "networkx"))
        for t in docstrings(lib, 500, seen)
    ]
    common = [w for w, _ in Counter(w for t, _ in texts for w in t).most_common(words - 2)]
    index = {w: i + 2 for i, w in enumerate(common)}
    ids = torch.tensor([[index.get(w, 1) for w in t] + [0] * (length - len(t)) for t, _ in texts])
    labels = torch.tensor([k for _, k in texts])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    ids, labels = ids[order], labels[order]
    config = BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=length, num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config)

    def batches() -> Any:
        for rows in (torch.randperm(len(ids) - 300) + 300).split(64):
            yield {"input_ids": ids[rows], "attention_mask": (ids[rows] > 0).long()}, labels[rows]

    return _train(model, batches, 8, 1e-3, -(-(len(ids) - 300) // 64)), ids[:300], labels[:300]


def _ours(composite: Any, **how: Any) -> Method:
    def explain(model: nn.Module, x: Any, target: Tensor) -> Tensor:
        found = lfpgraph.attribute(model, x, target, composite, **how)
        return found["input_ids"] if isinstance(found, dict) else found

    return explain


def _random(model: nn.Module, x: Any, target: Tensor) -> Tensor:
    shape = x["input_ids"].shape if isinstance(x, dict) else x.shape
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _zennit(name: str, **options: Any) -> Method:
    def explain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        from tests.peers import peer

        composite = getattr(peer("zennit.composites"), name)(**options)
        with composite.context(model) as modified:
            leaf = x.clone().requires_grad_()
            out = _logits(modified(leaf))
            weights = nn.functional.one_hot(target, out.shape[-1]) * out.detach()
            return torch.autograd.grad(out, leaf, weights)[0]

    return explain


COMMON: dict[str, Method] = {
    "random": _random,
    "gradient x input": _ours("gradient-x-input"),
    **{name: _ours(name) for name in ("lrp-0", "epsilon", "gamma", "attnlrp")},
}
CNN: dict[str, Method] = {
    **COMMON,
    "integrated gradients": _ours("integrated-gradients"),
    **{name: _ours(name) for name in ("epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1")},
    "epsilon-gamma-box": _ours(epsilon_gamma_box(-0.9, 1.8)),
    "zennit EpsilonPlus": _zennit("EpsilonPlus"),
    "zennit EpsilonPlusFlat": _zennit("EpsilonPlusFlat"),
    "zennit EpsilonAlpha2Beta1": _zennit("EpsilonAlpha2Beta1"),
    "zennit EpsilonGammaBox": _zennit("EpsilonGammaBox", low=-0.9, high=1.8),
}
TRANSFORMER: dict[str, Method] = {
    **COMMON,
    "cp-lrp": _ours("cp-lrp"),
    "attnlrp with gamma": _ours(None),  # made below
    "LXT's functions": _ours("lxt"),
}


def _attnlrp_gamma() -> Any:
    """AttnLRP with the gamma rule in every layer, as its authors use it for vision transformers."""
    from lfpgraph.rules import lrp, lrp_transformer

    from lfpgraph.lrp import layer_composite

    gamma = lrp.Gamma(gamma=0.25)
    norm = {"normalisation": lrp_transformer.detached_norm}
    return layer_composite("attnlrp-gamma", convolution=gamma, dense=gamma, epsilon=0.0, others=norm)


TRANSFORMER["attnlrp with gamma"] = _ours(_attnlrp_gamma())


def measure(kind: str, seed: int, samples: int) -> dict[str, dict[str, float]]:
    """Every method's metrics on one model, means over samples."""
    if kind == "text":
        model, x, labels = text(seed)
    else:
        model, x, labels = images(kind, seed)
    given = (lambda t: {"input_ids": t, "attention_mask": (t > 0).long()}) if kind == "text" else (lambda t: t)
    with torch.no_grad():
        out = _logits(model(**given(x)) if kind == "text" else model(x))
    target = out.argmax(1)
    result = {"accuracy": {"all": float((target == labels).double().mean())}}
    x, target = x[:samples], target[:samples]
    methods = dict(CNN if kind == "cnn" else TRANSFORMER)
    if kind == "vit":
        methods["integrated gradients"] = _ours("integrated-gradients")

    def logit(t: Tensor) -> Tensor:
        with torch.no_grad():
            return _logits(model(t)).gather(1, target[:, None])[:, 0]

    def probability(t: Tensor) -> Tensor:
        with torch.no_grad():
            return _logits(model(t)).softmax(1).gather(1, target[:, None])[:, 0]

    def kept(t: Tensor, keep: Tensor) -> Tensor:
        with torch.no_grad():
            mask = ((t > 0) & keep).long()
            return _logits(model(input_ids=t, attention_mask=mask)).gather(1, target[:, None])[:, 0]

    background = float(digits()[0][0].min())  # black
    for name, method in methods.items():
        start = time.perf_counter()
        relevance = method(model, given(x), target).detach()
        row = {"seconds": time.perf_counter() - start}
        if kind == "text":
            row["abpc"] = float(token_perturbation(kept, x, relevance, x > 0).abpc.mean())
        else:
            curves = perturbation_curves(logit, x, relevance, steps=16, replace=background)
            row["abpc"] = float(curves.abpc.mean())
            row["comprehensiveness"] = float(comprehensiveness(probability, x, relevance, replace=background).mean())
            row["sufficiency"] = float(sufficiency(probability, x, relevance, replace=background).mean())
        result[name] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["cnn", "vit", "text"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for kind in options.models:
        runs = [measure(kind, seed, options.samples) for seed in range(options.seeds)]
        results[kind] = runs
        accuracy = ", ".join(f"{run['accuracy']['all']:.1%}" for run in runs)
        print(f"\n## {kind} (held-out accuracy {accuracy})\n")
        metrics = [m for m in ("abpc", "comprehensiveness", "sufficiency") if m in runs[0]["random"]]
        print("| method | " + " | ".join(metrics) + " |\n|---|" + "---|" * len(metrics))
        for name in sorted(set(runs[0]) - {"accuracy"}, key=lambda n: -sum(r[n]["abpc"] for r in runs)):
            cells = []
            for metric in metrics:
                values = [run[name][metric] for run in runs]
                cells.append(f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
