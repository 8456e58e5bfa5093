"""How far onnxruntime's parameters are from torch's after fifty steps: `python -m tools.onnx_equality [epsilon]`.

Prints the first table of docs/onnx.md: the largest relative difference of a parameter or float buffer, by optimizer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from tests.onnx_cases import CASES
from tests.test_onnx_step import OPTIMIZERS, fifty_steps


def main() -> None:
    epsilon = float(sys.argv[1]) if len(sys.argv) > 1 else None
    optimizers = list(OPTIMIZERS) if epsilon is None else ["sgd"]
    print(f"| model | epsilon | {' | '.join(optimizers)} |\n|---|---|{'---|' * len(optimizers)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            row = []
            for optimizer in optimizers:
                torch.manual_seed(0)
                found = fifty_steps(case, optimizer, Path(folder), case.epsilon if epsilon is None else epsilon)
                row.append(f"{found[0]:.1e}")
            print(f"| {name} | {case.epsilon if epsilon is None else epsilon} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
