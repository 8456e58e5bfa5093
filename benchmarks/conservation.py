"""Relevance over the zoo, as a table: `python -m benchmarks.conservation --table docs/conservation.md`.

Every tiny model of the zoo, float64, epsilon-plus, the first output's sum, batch norms with the batch's statistics: the
share of the explained value at the inputs and in each kind of leak, what no declaration covers, and what is missing.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from lfpgraph.models_zoo import ZOO, build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph

HEAD = "| model | inputs | leaks | undeclared | missing |\n|---|---|---|---|---|\n"


def _first(output: Any) -> Tensor:
    leaves = pytree.tree_leaves(output)
    return next(o for o in leaves if isinstance(o, Tensor) and o.is_floating_point() and o.dim() > 0).sum()


def _calibrate(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Give batch norms the statistics of the batch: with those of a fresh model, activations vanish over many layers."""
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # type: ignore[assignment]
    if norms:
        with torch.no_grad():
            model(*args, **kwargs)
    model.eval()


def row(name: str, composite: str) -> str:
    """One model's line; undeclared and missing are shares of the whole flow, leaks included."""
    torch.manual_seed(0)
    model, args, kwargs = build(name, "tiny")
    model = model.double().eval()
    args, kwargs = pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, (args, kwargs)
    )
    _calibrate(model, args, kwargs)
    try:
        found = lfpgraph.conservation(model, kwargs or args, _first, composite, fallback="retrace")
    except Exception as error:  # a row says so and the table goes on
        return f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:120]} | | | |"
    size = found.flow + sum(abs(v) for v in found.leaks.values()) or 1.0
    shares = {k: v for k, v in found.shares.items() if k not in ("inputs", "undeclared") and abs(v) >= 5e-5}
    leaks = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(shares.items(), key=lambda kv: -abs(kv[1])))
    undeclared = found.leaks.get("undeclared", 0.0) / size
    worst = f" ({found.worst[0][0]})" if abs(undeclared) > 1e-5 else ""
    return f"| {name} | {found.shares['inputs']:.1%} | {leaks} | {undeclared:.1e}{worst} | {found.residue / size:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--composite", default="epsilon-plus")
    parser.add_argument("--table", type=Path, help="write the page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for name in options.names or list(ZOO):
        lines.append(row(name, options.composite))
        print(lines[-1], flush=True)
    if options.table:
        note = f"# Conservation over the zoo\n\n{' '.join(__doc__.split())}\n\n"  # the module's own words
        options.table.write_text(note + HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
