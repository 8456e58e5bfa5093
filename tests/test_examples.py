"""The examples run as they stand, on less data or for fewer epochs; and a reward in `transformers.Trainer` is what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lfpgraph

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look there
    spec.loader.exec_module(module)
    return module


def test_plain_loop() -> None:
    assert example("plain_loop").main(["--epochs", "2"]) > 0.8


def test_trainer_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Called again, it goes on, and finds that nothing is left to do."""
    pytest.importorskip("accelerate")
    module, options = example("trainer_reward"), ["--epochs", "2", "--folder", str(tmp_path)]
    score = module.main(options)
    assert score > 0.8 and module.main(options) == score
    assert capsys.readouterr().out.count("finished after 44 steps") == 2
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["eval_accuracy"] == score


def test_compress_digits() -> None:
    """What three digits need is told by relevance, and not by chance; half a bit more is worth spending well."""
    module = example("compress_digits")
    found = module.main(["--epochs", "4", "--shares", "0.7"])
    assert found["relevance"][0] > 0.95 and found["relevance"][0] > found["chance"][0] + 0.1
    found = module.main(["--epochs", "4", "--bits", "2", "2.5"])
    assert found["relevance"][0] == found["chance"][0] and found["feedback"][1] > 0.95


@pytest.mark.filterwarnings("ignore")  # of lightning: workers, deprecated calls into torch
def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    assert example("lightning_module").main(["--epochs", "2"]) > 0.85


def test_finetune_onnx(tmp_path: Path) -> None:
    """On a small file in place of the pretrained one: lines are drawn, the step trains, the weights are saved."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(432, 2), torch.nn.Softmax(-1)]
    model = torch.nn.Sequential(*layers)
    lfpgraph.onnx.export_training_step(model, torch.randn(2, 3, 48, 192), tmp_path / "step.onnx", optimizer="adam")
    few = ["--samples", "16", "--held-out", "16", "--epochs", "2", "--save", str(tmp_path / "new.safetensors")]
    scores = example("finetune_onnx").main([str(tmp_path / "step.onnx"), *few])
    assert all(0 <= score <= 1 for score in scores) and (tmp_path / "new.safetensors").is_file()


@pytest.mark.slow
def test_lora() -> None:
    """Adapters trained by LFP do about what backprop's do, and far more than the head alone."""
    pytest.importorskip("peft")
    scores = {way: found[0] for way, found in example("lora").main([]).items()}
    assert scores["lfp"] > scores["head alone, backprop"] + 0.1 and scores["lfp"] > scores["backprop"] - 0.05


@pytest.mark.slow
def test_transformers_reward_learns() -> None:
    pytest.importorskip("transformers")
    assert example("transformers_reward").main([]) > 0.85


@pytest.mark.parametrize("accumulate", [1, 2])
def test_compute_loss_func_is_the_reward_by_hand(tmp_path: Path, accumulate: int) -> None:
    """Two steps of `transformers.Trainer` with the example's function equal two written out, accumulated or not."""
    transformers = pytest.importorskip("transformers")
    module = example("transformers_reward")
    from .support.hf_models import batch, bert, items

    def plain(model: Any) -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def without_dropout() -> Any:
        model = bert()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        return lfpgraph.wrap(model)

    model, twin = without_dropout(), without_dropout()
    optimizer = plain(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=8 // accumulate, seed=3, report_to=[],
        gradient_accumulation_steps=accumulate, disable_tqdm=True, use_cpu=True, max_grad_norm=0.0, save_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip

    class InOrder(transformers.Trainer):  # whose argument for it is younger than the oldest that is supported
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(items("bert", 16))

    trainer = InOrder(
        model, arguments, train_dataset=items("bert", 16), compute_loss_func=module.reward_as_loss,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    other, data = plain(twin), batch("bert", 16)
    for rows in (slice(0, 8), slice(8, 16)):
        part = {key: value[rows] for key, value in data.items()}
        labels = part.pop("labels")
        other.zero_grad()
        logits = twin(**part).logits
        lfpgraph.reward_loss(logits, lfpgraph.rewards.Softmax()(logits, labels)).div(8).backward()
        other.step()
    for (name, p), q in zip(model.named_parameters(), twin.named_parameters()):
        torch.testing.assert_close(p, q[1], rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(model.classifier.weight, bert().classifier.weight, rtol=1e-2)
