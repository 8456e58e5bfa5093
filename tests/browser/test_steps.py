"""Training steps of every kind of model in onnxruntime-web, in Node: three steps move the parameters as they do in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lfpgraph
from lfpgraph.onnx import OrtTrainer, export_training_step

from ..support.browser import node
from ..support.onnx_cases import CASES, Case, output_of
from ..support.ten_steps import X, Y, compare, step_file

THREE_STEPS = """
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
const { path, given, changing } = JSON.parse(await readFile(process.argv[1], "utf8"));
const session = await ort.InferenceSession.create(new Uint8Array(await readFile(path)), { executionProviders: ["wasm"] });
const numbers = (type, data) => type === "int64" ? BigInt64Array.from(data.map(BigInt)) : Float32Array.from(data);
const tensor = ([name, type, data, dims]) => [name, new ort.Tensor(type, numbers(type, data), dims)];
const feeds = Object.fromEntries(given.map(tensor));
for (let step = 0; step < 3; step++) {
  const found = await session.run(feeds, changing.map((name) => `new/${name}`));
  for (const name of changing) feeds[name] = found[`new/${name}`];
}
console.log(JSON.stringify(Object.fromEntries(changing.map((name) => [name, Array.from(feeds[name].data, Number)]))));
"""


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(4, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0].mean(1))


KINDS = {
    **CASES,
    "gru": Case(lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 6, 4), epsilon=0.1),
    "rnn": Case(lambda: Recurrent(nn.RNN), lambda n: torch.randn(n, 6, 4), epsilon=0.1),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_three_steps_are_those_of_the_python_trainer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = KINDS[name]
    model, x = case.build(), case.batch(4)
    shape = output_of(model(x)).shape
    y = torch.randint(0, shape[-1], shape[:-1])
    rules = lfpgraph.get_composite("lfp").with_options(epsilon=case.epsilon)
    step = export_training_step(
        model, x, tmp_path / "step.onnx", "softmax", "momentum", rules, parameters="outside", forward=False
    )
    trainer = OrtTrainer(step, threads=1)
    text = trainer.description
    given: dict[str, Any] = {text["inputs"][0]: x, text["target"]: y, "lr": torch.tensor(case.lr)}
    stored = {key: value for key, value in trainer.state_dict().items() if key not in text["aliases"]}
    given |= {name: torch.as_tensor(value) for name, value in stored.items()}
    given |= {name: torch.as_tensor(value) for name, value in trainer.optimizer_state().items()}
    feeds = [[key, str(v.dtype)[6:], v.flatten().tolist(), list(v.shape)] for key, v in given.items()]
    changing = [*text["parameters"], *text["buffers"]]
    (tmp_path / "run.json").write_text(
        json.dumps({"path": str(step), "given": feeds, "changing": [*changing, *text["state"]]})
    )
    found = json.loads(node("--input-type=module", "-e", THREE_STEPS, str(tmp_path / "run.json")))
    before = trainer.state_dict()
    for _ in range(3):
        trainer.step(x.numpy(), y.numpy(), lr=case.lr)
    after = trainer.state_dict()
    assert any(not np.array_equal(before[key], after[key]) for key in text["parameters"])
    for key in changing:
        other = np.asarray(found[key], np.float64).reshape(after[key].shape)
        assert np.linalg.norm(other - after[key]) <= 1e-4 * max(np.linalg.norm(after[key]), 1e-3), key


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_ten_lines_of_the_docs_are_those_of_the_python_trainer(optimizer: str, tmp_path: Path) -> None:
    path = step_file(tmp_path, optimizer, "outside")
    (tmp_path / "batch.json").write_text(json.dumps({"x": X.tolist(), "target": Y.tolist()}))
    losses = [float(line) for line in node("step.mjs", str(tmp_path)).split()]
    trained = json.loads((tmp_path / "trained.json").read_text())
    compare(path, losses, {name: np.asarray(numbers, np.float32) for name, numbers in trained.items()})
