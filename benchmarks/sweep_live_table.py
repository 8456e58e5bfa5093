"""docs/sweep-live.md: what the rows of `sweep_live` add up to, and every miss with its reason."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

__all__ = ["CLOSE", "miss", "summary", "table"]

CLOSE = 1e-5  # float32, the same operations: only the order of sums may differ
Row = dict[str, Any]


def is_built(row: Row) -> bool:
    """Whether there was a model to measure: it was built, and takes a plain step."""
    return not row.get("error", "").startswith(("build", "plain"))


def miss(row: Row) -> str | None:
    """What is wrong with a row; None where nothing is."""
    if (problem := row.get("error")) is not None:
        return str(problem)
    if not row["output_error"] <= CLOSE:
        return f"outputs differ from the plain model's by {row['output_error']:.2g}"
    if not row["gradient_error"] <= CLOSE:
        return f"gradient differs from autograd's by {row['gradient_error']:.2g}"
    if not row["finite"]:
        return "LFP feedback is not finite"
    if row["missing"]:
        return (
            f"{len(row['missing'])} of {row['gradients']} parameters get no feedback ({', '.join(row['missing'][:3])})"
        )
    if row["new_plans"]:
        return f"an equal second step made {row['new_plans']} new plans"
    for message in row["messages"]:
        # remarks that are right: on weights, and on parameters that autograd gives nothing either (else they were missing)
        if "wholly zero" not in message and "receive no reward" not in message:
            return f"warning: {message}"
    return None


def summary(rows: list[Row]) -> list[str]:
    """The counts, as the lines of a Markdown table."""
    built = [row for row in rows if is_built(row)]
    done = [row for row in built if "error" not in row]
    counts = {
        "asked for": len(rows),
        "built, and take a plain step": len(built),
        "- in train mode": sum(row.get("mode") == "train" for row in built),
        "all three steps taken without an exception": len(done),
        f"outputs equal to the plain model's (within {CLOSE:g} of the largest entry)": sum(
            row["output_error"] <= CLOSE for row in done
        ),
        "- bit for bit (a recurrent layer runs step by step under the wrap, so its last digits may differ)": sum(
            row["output_error"] == 0 for row in done
        ),
        f"recorded gradient equal to autograd (within {CLOSE:g} of the largest gradient)": sum(
            row["gradient_error"] <= CLOSE for row in done
        ),
        "LFP feedback finite": sum(row["finite"] for row in done),
        "every parameter with a gradient gets feedback": sum(not row["missing"] for row in done),
        "an equal second step makes no new plan": sum(not row["new_plans"] for row in done),
        "nothing to say at all": sum(miss(row) is None for row in done),
    }
    return ["| | model types |", "|---|---|", *(f"| {what} | {n} |" for what, n in counts.items())]


def _dates(rows: list[Row]) -> str:
    """How many rows are of which day, those with a model first."""
    days = Counter((row.get("date", "a day not noted"), is_built(row)) for row in rows)
    return ", ".join(
        f"{n} {'measured' if built else 'not built'} on {day}"
        for (day, built), n in sorted(days.items(), key=str, reverse=True)
    )


def table(rows: list[Row], total: int) -> str:
    """The whole page."""
    import transformers

    built = [row for row in rows if is_built(row)]
    misses = [(row["type"], what) for row in built if (what := miss(row)) is not None]
    listed = ["None."]
    if misses:
        listed = ["| type | what |", "|---|---|", *(f"| {name} | {what.replace('|', '/')} |" for name, what in misses)]
    return "\n".join([
        "# Sweep over transformers, live",
        "",
        f"Made by `python -m benchmarks.sweep_live` ({time.strftime('%Y-%m-%d')}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, one thread). Small random instances in train mode with the dropout they have (in eval "
        "mode where they cannot train as they are), float32, the default wrap. The same step at the same seed is taken by the "
        "plain model, by a wrapped copy that records the run and asks for the true gradient, and twice by a copy under "
        f"`lfp`, the default composite. {len(rows)} of the {total} model types that transformers knows have been run, not all "
        f"at one commit: {_dates(rows)}.",
        "",
        *summary(rows),
        "",
        "## Misses",
        "",
        *listed,
        "",
        "A difference that is infinite: a parameter has a gradient on one side and none on the other. More than so many "
        "seconds: not measured.",
        "",
        "## Not built",
        "",
        "The builder of instances has none of these that takes a plain step: "
        + (", ".join(row["type"] for row in rows if not is_built(row)) or "none") + ".",
        "",
    ])  # fmt: skip
