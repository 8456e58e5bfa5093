"""How faithful explanations are, ours and others' side by side: `python -m benchmarks.faithfulness --page docs/faithfulness.md`.

Four models are trained here by backprop: a CNN and a ViT on scikit-learn's digits, a two-layer BERT on docstrings (which of
three libraries is it from) and one on texts with planted key words. Every method explains the predicted class of the same
samples. ABPC: area between the least- and the most-relevant-first perturbation curves of the class's logit, more is
better; pixels are replaced by black, tokens masked out. Comprehensiveness (more is better) and sufficiency (less is
better) are of its probability. Top-1 accuracy: the most relevant token is a key word of the class.

`--part train` explains training samples: what is chosen (composites, baselines, steps) is chosen there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lfpgraph.audits.faithfulness import (
    comprehensiveness,
    perturbation_curves,
    sufficiency,
    token_erasure,
    token_perturbation,
    top1_accuracy,
)

from .faithful_models import KINDS, Task, call_of, load, logits, task_of
from .faithful_sides import missing, sides

METRICS = ("abpc", "comprehensiveness", "sufficiency", "top1")
MARK = "<!-- the rest is written by benchmarks.faithfulness -->"


def metrics_of(model: nn.Module, task: Task, x: Tensor, target: Tensor, relevance: Tensor, black: float) -> Any:
    """Means over samples of every metric that is defined for the inputs."""

    def logit(t: Tensor, kept: Tensor | None = None, probable: bool = False) -> Tensor:
        with torch.no_grad():
            call = {} if kept is None else {"input_ids": t, "attention_mask": ((t > 0) & kept).long()}
            out = logits(model(t) if kept is None else model(**call))
            return (out.softmax(1) if probable else out).gather(1, target[:, None])[:, 0]

    def probability(t: Tensor, kept: Tensor | None = None) -> Tensor:
        return logit(t, kept, True)

    if x.is_floating_point():
        row = {
            "abpc": perturbation_curves(logit, x, relevance, steps=16, replace=black).abpc,
            "comprehensiveness": comprehensiveness(probability, x, relevance, replace=black),
            "sufficiency": sufficiency(probability, x, relevance, replace=black),
        }
    else:
        row = {"abpc": token_perturbation(logit, x, relevance, x > 0).abpc}
        row["comprehensiveness"], row["sufficiency"] = token_erasure(probability, x, relevance, x > 0)
        if task.truth is not None:
            row["top1"] = top1_accuracy(relevance.masked_fill(x == 0, -torch.inf), task.truth(x, target))
    return {name: float(value.mean()) for name, value in row.items()}


def measure(kind: str, seeds: int, samples: int, part: str, chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Every method (or those of the chosen names) on one kind of model: figures by seed, and why a method does not run."""
    task = task_of(kind)
    model = task.build()
    black = float(task.train[0].min())
    methods = [side for side in sides(kind, black) if not chosen or side.name in chosen]
    rows: list[dict[str, Any]] = [
        {"name": m.name, "tool": m.tool, "passes": m.passes, "baseline": m.baseline, "runs": []} for m in methods
    ]
    accuracy = []
    for seed in range(seeds):
        load(model, task, seed)
        x, y = task.held_out if part == "held out" else task.train
        with torch.no_grad():
            target = logits(model(x) if x.is_floating_point() else model(**call_of(x))).argmax(1)
        accuracy.append(float((target == y).double().mean()))
        x, target = x[:samples], target[:samples]
        for row, method in zip(rows, methods):
            if "error" in row:  # of an earlier seed
                continue
            try:
                method.explain(model, x, target)  # which may trace
                start = time.process_time()
                relevance = method.explain(model, x, target).detach()
            except Exception as error:  # of any tool; the table says so
                row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100]
                continue
            seconds = (time.process_time() - start) / len(x)
            if not bool(torch.isfinite(relevance).all()):
                row["error"] = "NaN or infinity"
                continue
            row["runs"].append({**metrics_of(model, task, x, target, relevance, black), "milliseconds": 1000 * seconds})
    return {"accuracy": accuracy, "samples": len(x), "part": part, "rows": rows}


def table(kind: str, result: dict[str, Any]) -> str:
    """One model's table: methods of one pass, then those of several, each by ABPC."""
    accuracy = ", ".join(f"{a:.1%}" for a in result["accuracy"])
    lines = [f"## {kind} ({result['samples']} {result['part']} samples for each seed; accuracy {accuracy})"]
    done = [row for row in result["rows"] if row["runs"]]
    for title, group in (
        ("One pass", [r for r in done if r["passes"] <= 1]),
        ("Several passes", [r for r in done if r["passes"] > 1]),
    ):
        metrics = [m for m in METRICS if group and m in group[0]["runs"][0]]
        head = ["tool", "method", "baseline", "passes", "ms each", *metrics]
        lines += ["", f"### {kind}: {title.lower()}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in sorted(group, key=lambda r: -sum(run["abpc"] for run in r["runs"])):
            runs = row["runs"]
            cells = [row["tool"], f"`{row['name']}`", row["baseline"], str(row["passes"])]
            cells.append(f"{min(run['milliseconds'] for run in runs):.2g}")
            for metric in metrics:
                values = [run[metric] for run in runs]
                cells.append(f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            lines.append(f"| {' | '.join(cells)} |")
    refused = [row for row in result["rows"] if "error" in row]
    if refused:
        lines += ["", "Did not run:", ""]
        lines += [f"- {row['tool']} `{row['name']}`: {row['error']}" for row in refused]
    return "\n".join(lines) + "\n"


def merge(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Earlier results with the rows of a later run of some methods in place of theirs, or added.

    Raises:
        SystemExit: the models were not the same, so the figures do not belong in one table.
    """
    for kind, result in now["models"].items():
        old = before["models"][kind]
        if any(old[fact] != result[fact] for fact in ("accuracy", "samples", "part")):
            raise SystemExit(
                f"{kind}: accuracy {old['accuracy']} before and {result['accuracy']} now; run all methods again"
            )
        own = {(row["tool"], row["name"], row["baseline"]) for row in result["rows"]}
        kept = [row for row in old["rows"] if (row["tool"], row["name"], row["baseline"]) not in own]
        old["rows"] = kept + result["rows"]
    return before


def write_page(page: Path, results: dict[str, Any]) -> None:
    """Put the tables below the mark of a page."""
    text, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{page} has no line {MARK}")
    absent = results["missing"]
    note = f"Not installed in this run: {', '.join(absent)}.\n\n" if absent else ""
    tables = "\n".join(table(kind, result) for kind, result in results["models"].items())
    page.write_text(f"{text}{MARK}\n\n{note}{tables}", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*KINDS], help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--part", choices=("held out", "train"), default="held out")
    parser.add_argument(
        "--methods", nargs="+", default=[], help="run these alone and merge them into the file of --json"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--page", type=Path, help="write the tables into this page, below its mark")
    parser.add_argument("--from-json", type=Path, help="run nothing; take the figures of this file")
    options = parser.parse_args()
    if options.from_json:
        results = json.loads(options.from_json.read_text(encoding="utf-8"))
    else:
        warnings.simplefilter("ignore")
        results = {"torch": torch.__version__, "seeds": options.seeds, "missing": missing(), "models": {}}
        if options.json and options.json.exists() and not options.methods:  # models that are not run again now stay
            results["models"] |= json.loads(options.json.read_text(encoding="utf-8"))["models"]
        for name in results["missing"]:
            print(f"{name} is not installed: its methods are left out")
        for kind in options.models:
            results["models"][kind] = measure(kind, options.seeds, options.samples, options.part, options.methods)
            print(table(kind, results["models"][kind]), flush=True)
            if options.json and not options.methods:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.methods and options.json:
        results = merge(json.loads(options.json.read_text(encoding="utf-8")), results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.page:
        write_page(options.page, results)


if __name__ == "__main__":
    main()
