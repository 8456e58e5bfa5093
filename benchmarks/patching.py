"""How well one pass tells what patching finds: `python -m benchmarks.patching --seeds 3`.

Two models. "gpt2-small": GPT-2 small's shape (12 layers, 768 wide, 12 heads) with random weights as transformers draws them.
"induction": 2 layers, 64 wide, trained here to repeat what followed a token before. Clean and corrupt inputs differ in one
token; the metric is the difference of two logits at the last position. Sites: the residual stream (blocks' outputs), MLPs' and
attentions' outputs, each at every position, each patched by a run of its own; heads; Pearson's correlation over all of them.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lfpgraph

METHODS = ("deeplift", "relp", "gradient")
WORDS = 64
MODULES = ("transformer.h.[0-9]", "transformer.h.[0-9][0-9]", "*.mlp", "*.attn")


def gpt2(layers: int, width: int, heads: int, words: int) -> nn.Module:
    """A GPT-2 of this size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=words, n_embd=width, n_layer=layers, n_head=heads, n_positions=64, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def repeats(count: int, length: int, words: int = WORDS) -> Tensor:
    """Texts [count, 2 length] of random tokens, the second half as the first."""
    half = torch.randint(1, words, (count, length))
    return torch.cat([half, half], 1)


def trained(seed: int, steps: int) -> nn.Module:
    """A small GPT-2 that has learned to repeat."""
    torch.manual_seed(seed)
    model = gpt2(2, 64, 4, WORDS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        ids = repeats(64, 8 + step % 5)
        logits = model(ids).logits
        half = ids.shape[1] // 2
        loss = nn.functional.cross_entropy(logits[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (logits[:, half:-1].argmax(-1) == ids[:, half + 1 :]).double().mean()
    print(f"induction, seed {seed}: loss {float(loss):.3f}, {float(right):.1%} of the second half right")
    return model.eval()


def pair(kind: str, seed: int) -> tuple[Tensor, Tensor, Any]:
    """A clean and a corrupt text, and the metric."""
    torch.manual_seed(100 + seed)
    if kind == "gpt2-small":
        clean = torch.randint(1, 1000, (1, 8))
        corrupt = clean.clone()
        corrupt[0, 3] = 7
        return clean, corrupt, lambda out: out.logits[:, -1, 11] - out.logits[:, -1, 12]
    clean = repeats(8, 8)[:, :-1]  # what comes next stands at place 7
    corrupt = clean.clone()
    right = clean[:, 7].clone()
    wrong = (right + 1 + torch.randint(WORDS - 2, right.shape)) % (WORDS - 1) + 1
    corrupt[:, 7] = wrong
    rows = torch.arange(len(clean))
    return clean, corrupt, lambda out: out.logits[rows, -1, right] - out.logits[rows, -1, wrong]


def measure(kind: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Correlations by kind of site and method."""
    torch.manual_seed(seed)
    model = gpt2(12, 768, 12, 1000) if kind == "gpt2-small" else trained(seed, steps)
    clean, corrupt, metric = pair(kind, seed)
    print(f"{kind}, seed {seed}: {positions_of(model, clean)}", flush=True)
    given = ({"input_ids": clean}, {"input_ids": corrupt}, metric)
    found: dict[str, dict[str, float]] = {}
    for sites in ("positions", "heads"):
        exact = lfpgraph.patching(model, *given, sites, "exact", modules=MODULES)
        parts = {"heads": lambda name: True}
        if sites == "positions":
            parts = {
                "residual stream": lambda name: name.split(".")[-1].isdigit(),
                "MLP": lambda name: name.endswith(".mlp"),
                "attention": lambda name: name.endswith(".attn"),
            }
        for method in METHODS:
            estimate = lfpgraph.patching(model, *given, sites, method, modules=MODULES)
            for part, fits in parts.items():
                chosen = [{n: e for n, e in p.effects.items() if fits(n)} for p in (estimate, exact)]
                a, b = (torch.cat([e.flatten() for e in effects.values()]) for effects in chosen)
                found.setdefault(part, {})[method] = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    return found


def positions_of(model: nn.Module, ids: Tensor) -> str:
    """How much of the last prediction's relevance the first token has, and all tokens, without positions and with them."""
    said = []
    for positions in (None, "tokens"):
        how: Any = {"composite": "attnlrp", "details": True, "positions": positions}
        found = lfpgraph.attribute(model, {"input_ids": ids}, lambda out: out.logits[:, -1].amax(-1), **how)
        relevance = found.inputs["input_ids"]
        first = (relevance[:, 0].abs() / relevance.abs().sum(1)).mean()
        said.append(f"{float(first):.1%} and {float((relevance.sum(1) / found.explained).median()):.1%}")
    return f"the first token's share, and all tokens' part of what is explained: {', with positions '.join(said)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["gpt2-small", "induction"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="of training the small model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    for kind in options.kinds:
        runs = [measure(kind, seed, options.steps) for seed in range(options.seeds)]
        results[kind] = runs
        print(f"\n| {kind}: correlation with patching | {' | '.join(METHODS)} |\n{'|---' * (1 + len(METHODS))}|")
        for part in runs[0]:
            cells = [[run[part][method] for run in runs] for method in METHODS]
            print(
                f"| {part} | " + " | ".join(f"{sum(c) / len(c):.3f} ({min(c):.3f})" for c in cells) + " |", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
