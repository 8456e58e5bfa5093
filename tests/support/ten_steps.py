"""The step file that `examples/step.cpp` and `examples/browser/step.mjs` train on, and what `OrtTrainer` makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lfpgraph.onnx import OrtTrainer, export_training_step

__all__ = ["X", "Y", "compare", "shown_lines", "step_file"]

ROOT = Path(__file__).parents[2]
X = ((np.arange(40) * 37 % 101).astype(np.float32) / np.float32(101)).reshape(8, 5)
Y = np.arange(8) % 3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def step_file(folder: Path, optimizer: str, parameters: str) -> Path:
    torch.manual_seed(0)
    return export_training_step(
        Small(), torch.tensor(X), folder / "step.onnx", "softmax", optimizer, parameters=parameters, forward=False
    )


def compare(path: Path, losses: list[float], found: dict[str, np.ndarray]) -> None:
    """The losses of ten steps, and parameters and state after them, are `OrtTrainer`'s to 1e-5."""
    trainer = OrtTrainer(path, threads=1)
    before = trainer.parameters()
    np.testing.assert_allclose(losses, [trainer.step(X, Y, 0.01).metrics["loss"] for _ in range(10)], rtol=1e-5)
    wanted = trainer.parameters() | trainer.optimizer_state()
    assert found.keys() == wanted.keys() and losses[-1] < losses[0]
    for name, value in wanted.items():
        assert name not in before or np.abs(value - before[name]).max() > 1e-3, name
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32).reshape(value.shape), value, rtol=1e-5, atol=1e-7
        )


def shown_lines(example: str) -> str:
    """The lines of an example that docs/onnx.md shows, at the left margin."""
    lines = (ROOT / example).read_text().split("docs: begin\n")[1].split("\n")
    lines = lines[: next(i for i, line in enumerate(lines) if "docs: end" in line)]
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[margin:] for line in lines)
