"""The page of examples/browser in headless Chromium: what it learns from rewards alone, and that its numbers are Python's.

Run by `make test-browser`, which installs what it needs with npm; it is no part of `make test`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfpgraph.models_zoo import digits
from safetensors.torch import load_file

import lfpgraph
from lfpgraph.onnx import OrtTrainer

from ..support.browser import EXAMPLE, SCREENSHOTS, node


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("browser_site", EXAMPLE / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("site")
    module.main(folder, EXAMPLE / "node_modules" / "onnxruntime-web" / "dist", 0)
    return folder


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def found(url: str) -> dict[str, Any]:
    """What the scripted teacher has seen."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    print(node("teacher.mjs", url, str(SCREENSHOTS)))
    return json.loads((SCREENSHOTS / "found.json").read_text())  # type: ignore[no-any-return]


def test_it_learns_digits_from_300_rewards(found: dict[str, Any]) -> None:
    assert found["accuracy"][0] < 0.2 and found["accuracy"][-1] > 0.85
    assert not found["errors"]


def test_a_drawing_gets_another_guess_and_can_be_taken_back(found: dict[str, Any]) -> None:
    first, second = found["guesses"]
    assert first.startswith("I think this is") and second.startswith("I think this is") and first != second
    assert found["undone"] == "0"


def test_twenty_steps_are_those_of_the_python_trainer(found: dict[str, Any], site: Path) -> None:
    trainer = OrtTrainer(site / "step.onnx", threads=1)
    assert len(found["first"]) == 20
    for step in found["first"]:
        x = np.asarray(step["drawings"], np.float32).reshape(-1, 1, 8, 8)
        trainer.step(x, np.asarray(step["signal"], np.float32), lr=1e-3)
    for name, value in trainer.parameters().items():
        other = np.asarray(found["after"][name], np.float32).reshape(value.shape)
        assert np.linalg.norm(other - value) <= 1e-4 * np.linalg.norm(value), name


def test_torch_takes_the_downloaded_weights_and_sees_the_same(found: dict[str, Any], site: Path) -> None:
    model = digits.cnn()
    model.load_state_dict(load_file(SCREENSHOTS / "taught.safetensors"))
    data = {name: json.loads((site / f"{name}.json").read_text()) for name in ("train", "test")}
    x = torch.tensor(data["test"]["images"]).float().div(16).view(-1, 1, 8, 8)
    accuracy = (model(x).argmax(1) == torch.tensor(data["test"]["labels"])).float().mean().item()
    assert abs(accuracy - found["accuracy"][-1]) < 0.003
    image = torch.tensor(data["train"]["images"][:1]).float().div(16).view(1, 1, 8, 8)
    relevance = lfpgraph.attribute(model.eval(), image, "predicted", "attnlrp")
    torch.testing.assert_close(torch.tensor(found["relevance"]), relevance.flatten(), rtol=1e-3, atol=1e-4)


def test_node_runs_the_same_learner(site: Path) -> None:
    said = node("node.mjs", str(site))
    assert said.startswith("100 rewards") and float(said.split(",")[1].split("%")[0]) > 30
