"""Every model type of transformers in small, on the live engine: `python -m benchmarks.sweep_live --builder file.py:function`.

Each runs in train mode (where it has one), with its own dropout, under the default wrap. Three copies of a model take the
same step at the same seed: plain; recorded under a composite that asks for the true gradient; and under `lfp`, the default. See
`measure_live` for what is compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph import Composite, Ruleset
from lfpgraph.errors import one_line
from lfpgraph.graph.calls import flatten_output
from lfpgraph.graph.graph import is_float
from lfpgraph.wrapping.calls import wrapping_of

from .sweep import model_types, sweep
from .sweep_live_table import miss, summary, table

__all__ = ["RECORDED", "measure_live"]

# The true gradient by way of the recorder: another module's ruleset keeps the engine from leaving the run alone.
RECORDED = Composite(
    "recorded", Ruleset(rules=False, epsilon=0.0, scale="signal"), overrides=(("no.such.module", Ruleset()),)
)


class _Messages(logging.Handler):
    """Keeps the engine's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def measure_live(model_type: str, builder: Any) -> dict[str, Any]:
    """The row of one model type; `error` holds the stage and the message where something fails.

    Returns:
        output_error: the largest difference of an output from the plain model's, over that output's largest entry.
        gradient_error: the largest difference of a recorded gradient from the plain one, over the largest gradient.
        finite: whether all feedback is finite. missing: parameters with a gradient and without feedback.
        plans: sequences planned for two equal steps.
    """
    row: dict[str, Any] = {"type": model_type}
    stage, start = "build", time.perf_counter()
    messages = _Messages()
    log = logging.getLogger("lfpgraph")
    log.setLevel(logging.WARNING)
    log.addHandler(messages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, inputs, row["mode"] = builder(model_type)
            row["build_s"] = round(time.perf_counter() - start, 2)
            stage = "plain"
            twins = [copy.deepcopy(model) for _ in range(2)]
            start = time.perf_counter()
            outputs, expected, signals = _step(model, inputs, None)
            row["plain_s"] = round(time.perf_counter() - start, 2)
            stage = "recorded"
            found, recorded, _ = _step(lfpgraph.wrap(twins[0], RECORDED), inputs, signals)
            row |= {"output_error": _apart(found, outputs), "gradient_error": _difference(recorded, expected)}
            stage, start = "lfp", time.perf_counter()
            wrapped = lfpgraph.wrap(twins[1])
            found, feedback, _ = _step(wrapped, inputs, signals)
            row["output_error"] = max(row["output_error"], _apart(found, outputs))
            row["finite"] = all(bool(torch.isfinite(f).all()) for f in feedback.values())
            row |= {"gradients": len(expected), "missing": sorted(set(expected) - set(feedback))}
            row["lfp_s"] = round(time.perf_counter() - start, 2)
            stage = "second step"
            engine = wrapping_of(wrapped)
            assert engine is not None
            plans = engine.plans
            _step(wrapped, inputs, signals)
            row |= {"plans": plans, "new_plans": engine.plans - plans, "messages": messages.lines[:3]}
    except Exception as error:
        row["error"] = f"{stage}: {type(error).__name__}: {one_line(error, 300)}"
    finally:
        log.removeHandler(messages)
    return row


def _step(
    model: nn.Module, inputs: dict[str, Any], signals: dict[int, Tensor] | None
) -> tuple[list[Tensor], dict[str, Tensor], dict[int, Tensor]]:
    """One step at the fixed seed: the outputs, the parameters' gradients, and the signals that the outputs were given."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model.zero_grad(set_to_none=True)
    outputs = flatten_output(model(**copy.deepcopy(inputs)))[0]
    if signals is None:
        generator = torch.Generator().manual_seed(1)
        signals = {
            i: torch.randn(out.shape, generator=generator).to(out.dtype)
            for i, out in enumerate(outputs)
            if is_float(out) and out.requires_grad and bool(torch.isfinite(out).all())
        }
    torch.autograd.backward([outputs[i] for i in signals], list(signals.values()))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [out.detach().clone() for out in outputs], gradients, signals


def _apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of outputs, each over the largest entry of the one expected; 0 where all bits are equal."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return math.inf
    worst = 0.0
    for a, b in zip(found, expected):
        a, b = a.nan_to_num(), b.nan_to_num()
        if not torch.equal(a, b):
            scale = float(b.abs().max()) or 1.0
            worst = max(worst, float((a.to(torch.float64) - b.to(torch.float64)).abs().max()) / scale)
    return worst


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a gradient over the largest gradient; infinity where one is there and the other is not."""
    if set(found) != set(expected):
        return math.inf
    scale = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0) or 1.0
    worst = max((float((found[n] - g).abs().max()) for n, g in expected.items() if g.numel()), default=0.0)
    return worst / scale if math.isfinite(worst) or not math.isfinite(scale) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--builder", required=True, help="file.py:function, which returns (model, inputs, mode)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweep-live.jsonl"), help="rows; a type found here is done"
    )
    parser.add_argument("--again", action="store_true", help="measure the types found there with a miss anew")
    parser.add_argument("--sample", type=int, help="only so many types, drawn at random (always the same ones)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a model")
    parser.add_argument("--table", type=Path, help="write the Markdown table of all rows in --out here")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {row["type"]: row for row in map(json.loads, lines)}
    names = options.types or model_types()
    if options.sample is not None:
        names = random.Random(0).sample(names, options.sample)
    todo = [name for name in names if name not in known or (options.again and miss(known[name]) is not None)]
    if todo:
        known |= sweep(todo, options.out, options.builder, 1, options.timeout, measure_live)
    rows = [known[name] for name in sorted(known)]
    if options.table is not None:
        options.table.write_text(table(rows, len(model_types())), encoding="utf-8")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
