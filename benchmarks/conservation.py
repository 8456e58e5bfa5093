"""Where relevance goes in every model of the zoo: `python -m benchmarks.conservation --table docs/conservation.md`.

Every model is tiny and in float64, with the rules of epsilon-plus; batch norms have the batch's statistics. What is
explained is the largest absolute value of each sample in the first float output, summed over the batch. (A sum of whole
outputs would be zero where they are normalised.) "Inputs" and "leaks" are shares of the explained value. "Undeclared" is
what an operation or a sum loses beyond rounding without declaring it. "Missing" is what was handed to a node and never
arrived there. These two are shares of all that flows: the explained value and all leaks, each by its size.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from lfpgraph.models_zoo import ZOO, build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph

HEAD = "| model | inputs | leaks | undeclared | missing |\n|---|---|---|---|---|\n"
_NOT_LEAKS = ("inputs", "undeclared")


def largest(output: Any) -> Tensor:
    """The sum over the batch of the size of each sample's largest entry, in the first float output: a target."""
    leaves = pytree.tree_leaves(output)
    first = next(o for o in leaves if isinstance(o, Tensor) and o.is_floating_point() and o.dim() > 0)
    return torch.where(first.isfinite(), first, 0.0).abs().reshape(first.shape[0], -1).amax(1).sum()


def _calibrate(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Run the model once and give batch norms the statistics of the batch: with those of a fresh model, activations
    vanish over many layers. Some models also settle the types of their weights in their first run."""
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        model(*args, **kwargs)
    model.eval()


def measure(name: str, composite: str) -> dict[str, Any]:
    """One model's shares, or the error that it ends with."""
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model = model.double().eval()
    args, kwargs = pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, (args, kwargs)
    )
    _calibrate(model, args, kwargs)
    try:
        found = lfpgraph.conservation(model, kwargs or args, largest, composite, fallback="retrace")
    except Exception as error:  # a row says so and the table goes on
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    size = found.flow + sum(abs(v) for v in found.leaks.values()) or 1.0
    return {
        "shares": found.shares,
        "undeclared": found.leaks.get("undeclared", 0.0) / size,
        "missing": found.residue / size,
        "worst": found.worst[0][0] if found.worst else "",
    }


def row(name: str, found: Mapping[str, Any]) -> str:
    """One model's line of the table."""
    if "error" in found:
        return f"| {name} | {found['error']} | | | |"
    shares = {k: v for k, v in found["shares"].items() if k not in _NOT_LEAKS and abs(v) >= 5e-4}
    leaks = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(shares.items(), key=lambda kv: -abs(kv[1])))
    worst = f" ({found['worst']})" if abs(found["undeclared"]) > 1e-6 else ""
    inputs = found["shares"]["inputs"]
    return f"| {name} | {inputs:.1%} | {leaks} | {found['undeclared']:.1e}{worst} | {found['missing']:.1e} |"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """By kind of leak: in how many models it takes a hundredth or more, and which part of all sizes it is."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for found in rows:
        shares = {k: abs(v) for k, v in found["shares"].items()}
        whole = sum(shares.values()) or 1.0
        for kind, share in shares.items():
            parts[kind].append(share / whole)
    lines = ["| part | models with 1 % or more | mean of all models | median where present |", "|---|---|---|---|"]
    for kind, values in sorted(parts.items(), key=lambda kv: -sum(kv[1])):
        present = [v for v in values if v >= 0.01]
        middle = f"{median(present):.0%}" if present else "-"
        lines.append(
            f"| {kind} | {len(present)} | {mean([*values, *[0.0] * (len(rows) - len(values))]):.1%} | {middle} |"
        )
    return "\n".join(lines)


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    good = [v for v in found.values() if "error" not in v]
    settled = [v for v in good if abs(v["missing"]) <= 1e-9 and abs(v["undeclared"]) <= 1e-6]
    text = [
        "# Conservation over the zoo",
        " ".join(__doc__.split()),
        f"In {len(settled)} of {len(found)} models inputs and leaks add up to 1e-9, with at most 1e-6 undeclared. "
        "[attribution.md](attribution.md) explains the kinds of leak.",
        "That does not say how much a declared leak ought to take. Whatever an operation with a bias or a softmax keeps "
        "counts as theirs here; the tests of the rules say whether that share is right. Shares far beyond 100 % are large "
        "relevances of opposite sign, in inputs and leaks, beside a small explained value (levit-128s, rwkv-4).",
        "By size, as parts of inputs and leaks together:",
        summary(good),
        "Each model:",
    ]
    return "\n\n".join(text) + "\n\n" + HEAD + "\n".join(row(name, v) for name, v in found.items()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--composite", default="epsilon-plus")
    parser.add_argument(
        "--keep", type=Path, help="a JSON file: models it holds are not measured again, others are added"
    )
    parser.add_argument("--table", type=Path, help="write the page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    found = {}
    for name in options.names or list(ZOO):
        found[name] = kept[name] if name in kept else measure(name, options.composite)
        print(row(name, found[name]), flush=True)
        if options.keep:
            kept[name] = found[name]
            options.keep.write_text(json.dumps(kept, indent=1))
    if options.table:
        options.table.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
