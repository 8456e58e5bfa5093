"""Memory of local learning over backprop's, by optimizer and batch: a table of docs/methods.md, from docs/methods/memory.json.

python -m benchmarks.local_memory                    runs what docs/methods/memory.json lacks, and writes the table
python -m benchmarks.local_memory --folder /tmp/mine
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lfpgraph.comparison import compare, method_named

from .compared import FOLDER, PAGE, TASKS, with_table

__all__ = ["FILE", "table"]

FILE = FOLDER / "memory.json"
SIZES = (32, 64, 128, 512)
RATES = {"AdamW": (1e-3, 3e-3, 1e-2), "SGD": (0.1, 0.3, 1.0)}
# Model, optimizer, way, and whether it is trained, too; a way that is not takes one step.
ROWS = (
    ("cnn", "AdamW", "backprop", True), ("cnn", "AdamW", "local", True), ("cnn", "SGD", "backprop", True),
    ("cnn", "SGD", "local", True), ("cnn", "AdamW", "auglocal", False), ("cnn", "AdamW", "man", False),
    ("cnn", "SGD", "auglocal", False), ("cnn", "SGD", "man", False), ("vit", "AdamW", "backprop", False),
    ("vit", "AdamW", "local", False), ("vit", "AdamW", "man", False), ("vit", "AdamW", "auglocal", False),
)  # fmt: skip


def run(file: Path) -> None:
    """Train in each way, with each size of batch, that the file has not yet."""
    for model, optimizer, way, trained in ROWS:
        for size in SIZES:
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
            key = f"{model} {optimizer} {way} {size}"
            if key in known["runs"]:
                continue
            task, method = TASKS[model], replace(method_named(way), optimizer=optimizer)
            steps = min(task.steps, 75 * 1024 // size)  # 300, but 150 of 512 images
            rates, steps, seeds = (RATES[optimizer], steps, 3) if trained else (RATES[optimizer][:1], 1, 1)
            found = compare(task.build, *task.data(), (method,), steps=steps, rates=rates, seeds=seeds, batch_size=size)
            (one,) = found.to_json()["ways"]
            if one["failure"]:
                raise RuntimeError(f"{key}: {one['failure']}")
            scores = {"rate": one["rate"], "tried": one["tried"], "accuracy": [r["accuracy"] for r in one["runs"]]}
            known["torch"] = torch.__version__
            known["runs"][key] = {"kept_bytes": one["kept_bytes"], "peak_bytes": one["peak_bytes"]}
            known["runs"][key] |= {"steps": steps, **scores} if trained else {}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known).replace('"cnn ', '\n"cnn ').replace('"vit ', '\n"vit '), encoding="utf-8")


def table(file: Path) -> str:
    """A row for each model, optimizer and way: the share of backprop's memory with each size of batch, and the accuracies."""
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    lines = ["| | " + " | ".join(f"{size} images" for size in SIZES) + " |", "|---" * (len(SIZES) + 1) + "|"]
    for model, optimizer, way, trained in ROWS:
        cells = []
        for size in SIZES:
            mine, base = (runs[f"{model} {optimizer} {name} {size}"] for name in (way, "backprop"))
            cells.append(f"{_whole(mine) / _whole(base):.2f} ({mine['peak_bytes'] / base['peak_bytes']:.2f})")
            if way == "backprop":
                cells[-1] = f"{_whole(mine) / 2**20:.2f} MiB"
            if trained:
                scores = [100 * score for score in mine["accuracy"]]
                cells[-1] += f", {statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f} %"
        lines.append(f"| {'CNN' if model == 'cnn' else 'ViT'}, {optimizer}: `{way}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _whole(run: dict[str, Any]) -> int:
    """All that is alive at once: what is kept between steps, and the most that a step makes."""
    return int(run["kept_bytes"]) + int(run["peak_bytes"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    kept = given.folder / FILE.name
    run(kept)
    print(table(kept))
    if given.folder == FOLDER:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), "memory", table(kept)), encoding="utf-8")
