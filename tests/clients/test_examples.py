"""The examples of clients run as they stand, for fewer steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.client("trl", "examples/trl_trainers.py")
@pytest.mark.parametrize(("way", "steps"), [("sft", 30), ("dpo", 10), ("grpo", 10)])
def test_trl_trainers(way: str, steps: int) -> None:
    log = example("trl_trainers").main([way, "--steps", str(steps)])
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == steps // 5
    if way == "sft":
        assert losses[-1] < losses[0] - 0.5


@pytest.mark.client("sentence-transformers", "examples/sentence_embeddings.py")
def test_sentence_embeddings() -> None:
    before, after = example("sentence_embeddings").main(["--steps", "40"])
    assert after > before + 0.01
