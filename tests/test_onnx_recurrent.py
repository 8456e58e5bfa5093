"""Exported training steps of recurrent layers, written out for all steps at once: the numbers are those of feedback training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .support.helpers import relative

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from lfpgraph.onnx import OrtTrainer, export_training_step  # noqa: E402

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


class Recurrent(nn.Module):
    """A recurrent layer, all of whose states are read, and a head."""

    def __init__(self, cell: str, **options: Any) -> None:
        super().__init__()
        self.layer = CELLS[cell](4, 6, batch_first=True, **options)
        self.head = nn.Linear(6 * (1 + self.layer.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].tanh().mean(1))


@pytest.mark.parametrize(
    ("cell", "composite", "steps", "options"),
    [
        ("lstm", "lfp", 4, {"bidirectional": True}),
        ("gru", "lfp-epsilon", 3, {"bias": False}),
        ("relu", "lfp", 1, {}),
        pytest.param("lstm", "gradient", 3, {}, marks=pytest.mark.slow),
        pytest.param("gru", "gradient", 3, {"num_layers": 2}, marks=pytest.mark.slow),
        pytest.param("tanh", "lfp-epsilon", 5, {"num_layers": 2}, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_equal_torch(
    cell: str, composite: str, steps: int, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, rules = Recurrent(cell, **options), lfpgraph.get_composite(composite)
    rules = rules if composite == "gradient" else rules.with_options(epsilon=0.1)
    trainer = OrtTrainer(export_training_step(model, torch.randn(2, steps, 4), tmp_path / "s.onnx", composite=rules))
    lfpgraph.wrap(model, rules, engine="static")
    update = torch.optim.SGD(model.parameters(), 0.1)
    for size in (2, 3, 5):
        x, y = torch.randn(size, steps, 4), torch.randint(3, (size,))
        loss = nn.functional.cross_entropy(model(x), y)
        update.zero_grad()
        loss.backward()
        update.step()
        trainer.step(x.numpy(), y.numpy(), lr=0.1)
    found = trainer.state_dict()
    assert max(relative(torch.from_numpy(found[name]), value) for name, value in model.state_dict().items()) <= 1e-6
    assert relative(torch.from_numpy(trainer.predict(x.numpy())), model(x).detach()) <= 1e-6
