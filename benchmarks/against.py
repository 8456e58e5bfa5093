"""This version against another one, a step of one and of the other in turn: `python -m benchmarks.against OTHER --model gpt2`.

Each version runs in a process of its own and waits while the other steps, so that both meet the same state of the machine.
Two processes of the same code still differ by up to 5 %: hence several pairs of them, and the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["compare"]

ROOT = Path(__file__).parents[1]
SIDES = ("lfp", "backprop")


class _Version:
    """One tree's process: takes a step of a side when told to."""

    def __init__(self, tree: Path, model: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--steps-of", model]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._answer("ready")

    def _answer(self, start: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(start):
                return line[len(start) :]
        raise RuntimeError(f"a version's process ended with code {self.process.wait()}")

    def step(self, side: str) -> float:
        """Seconds of one step."""
        assert self.process.stdin
        print(side, file=self.process.stdin, flush=True)
        return float(self._answer("seconds"))


def compare(here: Path, other: Path, model: str, rounds: int, warm_up: int = 3) -> dict[str, float]:
    """Medians over the rounds: `SIDE` is this version's step over the other's, `ratio` and `other_ratio` LFP over backprop.

    Args:
        here, other: trees of this repository (other: a git worktree of an older commit, with `rules` and `models_zoo`
            reachable as `lfpgraph.rules` and `lfpgraph.models_zoo`).
        model: see `benchmarks.models.build`.
    """
    versions = {"here": _Version(here, model), "other": _Version(other, model)}
    seconds: dict[tuple[str, str], list[float]] = {(name, side): [] for name in versions for side in SIDES}
    for round_ in range(warm_up + rounds):
        order = list(versions) if round_ % 2 else list(reversed(versions))
        for side in SIDES:
            for name in order:
                seconds[name, side].append(versions[name].step(side))
    for version in versions.values():
        version.process.terminate()
    step = {key: statistics.median(values[warm_up:]) for key, values in seconds.items()}
    found = {side: step["here", side] / step["other", side] for side in SIDES}
    found["ratio"] = step["here", "lfp"] / step["here", "backprop"]
    found["other_ratio"] = step["other", "lfp"] / step["other", "backprop"]
    return found


def _serve(model: str) -> None:
    import torch

    from benchmarks.models import build
    from benchmarks.sides import SIDES as make

    case = build(model)
    parameters = [*case.model.parameters(), *(case.twin.parameters() if case.twin else ())]
    optimizer = torch.optim.SGD(parameters, lr=1e-7)
    running = {side: make[side](case) for side in SIDES}
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        running[line.strip()]()
        optimizer.step()
        print("seconds", time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, nargs="?", help="a tree of another version")
    parser.add_argument("--model", nargs="+", default=["mlp", "resnet18", "vit-s16", "gpt2"])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each side in a pair of processes")
    parser.add_argument("--pairs", type=int, default=3, help="of processes")
    parser.add_argument("--steps-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps_of:
        return _serve(options.steps_of)
    if options.other is None:
        parser.error("name the tree of another version")
    for model in options.model:
        pairs = [compare(ROOT, options.other.resolve(), model, options.rounds) for _ in range(options.pairs)]
        for key in pairs[0]:
            values = [pair[key] for pair in pairs]
            print(
                f"{model} {key} {statistics.median(values):.3f} (pairs: {' '.join(f'{v:.3f}' for v in values)})",
                flush=True,
            )


if __name__ == "__main__":
    main()
