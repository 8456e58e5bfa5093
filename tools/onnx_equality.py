"""How far onnxruntime's parameters are from torch's after fifty steps: `python -m tools.onnx_equality`.

Prints the first table of docs/onnx.md: the largest relative difference of a parameter or float buffer, by optimizer.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests.support.onnx_cases import CASES
from tests.test_onnx_step import OPTIMIZERS, fifty_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, help="of all models, in place of each one's own")
    parser.add_argument("--model", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--optimizer", nargs="*", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    options = parser.parse_args()
    print(f"| model | epsilon | {' | '.join(options.optimizer)} |\n|---|---|{'---|' * len(options.optimizer)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            case, row = CASES[name], []
            epsilon = case.epsilon if options.epsilon is None else options.epsilon
            for optimizer in options.optimizer:
                torch.manual_seed(0)
                row.append(f"{fifty_steps(case, optimizer, Path(folder), epsilon)[0]:.1e}")
            print(f"| {name} | {epsilon:g} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
