"""Operation coverage over the whole zoo at published sizes, without weights: `python -m benchmarks.coverage`.

Writes one JSON line a model as it goes (so that a stopped run goes on) and, at the end, the table of docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from lfpgraph.models_zoo import ZOO
from rich.progress import track

from lfpgraph.cli.models import resolve_model
from lfpgraph.cli.variants import first_report
from lfpgraph.errors import one_line
from lfpgraph.reports.table import count

# The models of DynamicLRP's table (Lee and Millan Arias 2025), by their names in the zoo.
DYNAMICLRP = (
    "vgg16", "resnet-50", "vit-b16", "efficientnetv2-m", "siglip-2-so400m", "wav2vec2-xls-r-300m", "whisper-small",
    "gpt2", "roberta-large", "llama-3.2-1b", "gemma-3-270m", "qwen3-0.6b", "flan-t5-large", "deplot", "mamba-130m",
)  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """The figures of one model, or its error."""
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name, "family": ZOO[name].family}
    try:
        data = first_report(resolve_model("zoo:" + name)).to_json()
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {one_line(error, 300)}"}
    row |= {"form": data["model"].removeprefix(name).strip(" ()"), "tracer": data["trace"]["tracer"]}
    row |= {key: data["nodes"][key] for key in data["nodes"]}
    row |= {"bearing": data["summary"]["reward_bearing_nodes"], "flops": data["summary"]["flops"]}
    row |= {key: data["parameters"][key] for key in ("elements", "rewarded", "rewarded_elements")}
    row["tensors"] = data["parameters"]["total"]
    row["reasons"] = sorted({p["reason"] for p in data["parameters"]["without_reward"]})
    row["kinds"] = {
        c: sorted({o["operation"] for o in data["operations"] if o["class"] == c}) for c in ("derived", "uncovered")
    }
    row["operations"] = sorted({o["operation"] for o in data["operations"] if o["class"] != "none"})
    row["seconds"] = time.perf_counter() - start
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """docs/coverage.md."""
    good = [row for row in rows if "error" not in row]
    ours = [row for row in good if row["name"] in DYNAMICLRP]
    lines = [
        "# Operation coverage of the zoo",
        "",
        f"Made by `make coverage` ({time.strftime('%Y-%m-%d')}, torch {torch.__version__}): {len(rows)} architectures at their "
        "published sizes, traced on fake tensors. [coverage-schema.md](coverage-schema.md) explains the classes.",
        "",
        "| | models | operations | carry reward | covered | derived | uncovered | kinds of operations |",
        "|---|---|---|---|---|---|---|---|",
        _totals("the zoo", good),
        _totals("the 15 of DynamicLRP's table", ours),
        "",
        "DynamicLRP reports 31,440 of 31,465 nodes (99.92 %) over its 15 models, with 47 operations. Its nodes are those of "
        "autograd graphs, so the two counts are of different things.",
        "",
        "| model | family | parameters | operations | carry reward | covered | derived | parameter tensors with reward | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['family']} | | | | | | {row['error']} | |")
            continue
        share = f"{row['bearing'] - row['uncovered']} of {row['bearing']}" if row["uncovered"] else "100 %"
        derived = f"{row['derived']} ({', '.join(row['kinds']['derived'])})" if row["derived"] else "0"
        rewarded = f"{row['rewarded']} of {row['tensors']}"
        if row["reasons"]:
            rewarded += f" ({', '.join(row['reasons'])})"
        name = row["name"] + (f" ({row['form']})" if row["form"] else "")
        lines.append(
            f"| {name} | {row['family']} | {count(row['elements'])} | {row['total']} | {row['bearing']} | {share} | {derived} "
            f"| {rewarded} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _totals(name: str, rows: list[dict[str, Any]]) -> str:
    bearing, uncovered, derived = (sum(row[key] for row in rows) for key in ("bearing", "uncovered", "derived"))
    share = 100 * (bearing - uncovered) / bearing if bearing else 0.0
    kinds = {op for row in rows for op in row["operations"]}
    return (
        f"| {name} | {len(rows)} | {sum(row['total'] for row in rows)} | {bearing} | {share:.2f} % | "
        f"{100 * derived / bearing if bearing else 0:.2f} % | {uncovered} | {len(kinds) or ''} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], help="models of the zoo; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.jsonl"))
    parser.add_argument("--table", type=Path, default=None, help="write the Markdown table here")
    options = parser.parse_args()
    logging.getLogger("lfpgraph").setLevel(logging.ERROR)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {row["name"]: row for row in map(json.loads, lines)}
    names = options.names or list(ZOO)
    for name in track([n for n in names if n not in known], "coverage"):
        known[name] = measure(name)
        with options.out.open("a") as file:
            file.write(json.dumps(known[name]) + "\n")
    rows = [known[name] for name in names]
    for row in rows:
        if "error" in row or row["uncovered"]:
            print(row["name"], row.get("error") or f"{row['uncovered']} uncovered: {row['kinds']['uncovered']}")
    if options.table is not None:
        options.table.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
