"""transformers: the Trainer as it is, checkpoints, generate, copies."""

from __future__ import annotations

import copy
import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from .support.helpers import assert_made  # noqa: E402
from .support.hf_models import MODELS, batch, bert, gpt2, items  # noqa: E402


class StopAt(transformers.TrainerCallback):
    """Ends training after a step, as an interruption would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


def train(model: nn.Module, name: str, folder: Path, *, stop: int | None = None, resume: str | None = None) -> Any:
    """Four optimizer steps of two batches each; saves after the second."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        learning_rate=5e-3,
        save_steps=2,
        logging_steps=1,
        seed=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=items(name),
        callbacks=[StopAt(stop)] if stop else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def difference(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Largest difference of any floating-point entry."""
    assert got.keys() == want.keys()
    return max((got[k] - want[k]).abs().max().item() for k in want if want[k].is_floating_point())


def interrupted(model: nn.Module, name: str, folder: Path, engine: str) -> dict[str, Tensor]:
    """Weights after a stop at half of a wrapped model's run, and a resumption by a wrapped model of another start."""
    trainer = train(model, name, folder, stop=2)
    assert trainer.state.global_step == 2
    checkpoint = str(folder / "checkpoint-2")
    model = MODELS[name](seed=1)
    if name == "vit":
        # transformers 5.23 saves ViT under its former parameter names, and the Trainer does not find them on
        # resuming: an unwrapped ViT of another start ends in other weights too. from_pretrained knows them.
        model = type(model).from_pretrained(checkpoint)
    trainer = train(lfpgraph.wrap(model, engine=engine), name, folder, resume=checkpoint)
    assert trainer.state.global_step == 4
    return weights(model)


@functools.cache
def backpropagated(name: str) -> dict[str, Tensor]:
    """Weights after the same run without feedback."""
    model = MODELS[name]()
    with tempfile.TemporaryDirectory() as folder:
        train(model, name, Path(folder))
    return weights(model)


@pytest.mark.parametrize("name", MODELS)
def test_trainer(name: str, tmp_path: Path, engine: str) -> None:
    """Unchanged Trainer, accumulation, clipping; feedback ran; a resumed run ends in the same weights."""
    make = MODELS[name]
    start = weights(make())
    model = lfpgraph.wrap(make(), engine=engine)
    trainer = train(model, name, tmp_path / "whole")
    saved = engine == "static"  # the first save writes the dtype to the config, which a program may depend on
    assert_made(model, engine, 1 + saved)
    assert trainer.model is model and lfpgraph.is_wrapped(model)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4 and all(0 < entry["grad_norm"] < float("inf") for entry in logged)
    whole = weights(model)

    backprop = backpropagated(name)
    moved = difference(backprop, start)
    assert moved > 1e-3 and difference(whole, start) > 0.1 * moved
    assert difference(whole, backprop) > 0.1 * moved, "feedback is not the gradient"

    model.load_state_dict(start)  # the same program again, from the first step
    assert difference(interrupted(model, name, tmp_path / "interrupted", engine), whole) <= 1e-6
    assert_made(model, engine, 1 + saved)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_composite_trains_as_backprop(name: str, tmp_path: Path) -> None:
    """The same program with the true gradient follows backpropagation step by step, dropout included."""
    model = lfpgraph.wrap(MODELS[name](), "gradient")
    train(model, name, tmp_path)
    assert difference(weights(model), backpropagated(name)) <= 1e-4


READER = """
import sys
import torch
import transformers
for folder in sys.argv[1:]:
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(folder + "/batch.pt")).logits, folder + "/logits.pt")
assert not any(name.split(".")[0] == "lfpgraph" for name in sys.modules)
"""


def test_save_pretrained_needs_no_lfpgraph_to_load(tmp_path: Path) -> None:
    """A process that never imports lfpgraph reads what a wrapped model saved, and computes the same."""
    wanted = {}
    for name, make in MODELS.items():
        model, data = lfpgraph.wrap(make()), batch(name)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(**data).loss.backward()
        optimizer.step()
        folder = tmp_path / name
        model.eval().save_pretrained(folder)
        torch.save(data, folder / "batch.pt")
        assert not any(b"lfpgraph" in file.read_bytes() for file in folder.iterdir())
        with torch.no_grad():
            wanted[name] = model(**data).logits
    folders = [str(tmp_path / name) for name in MODELS]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", READER, *folders], check=True, env=environment, cwd=tmp_path)
    for name, want in wanted.items():
        torch.testing.assert_close(torch.load(tmp_path / name / "logits.pt"), want, rtol=1e-6, atol=1e-6)


def test_generate(engine: str) -> None:
    """Text of a wrapped GPT-2, greedy and sampled, is that of its unwrapped twin, before and after a step."""
    model, plain = lfpgraph.wrap(gpt2(), engine=engine), gpt2()
    prompt = torch.randint(2, 60, (2, 5), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(prompt)
    for _ in range(2):
        for options in ({"do_sample": False}, {"do_sample": True, "top_k": 20}):
            texts = []
            for m in (model.eval(), plain.eval()):
                torch.manual_seed(5)
                texts.append(m.generate(prompt, attention_mask=mask, max_new_tokens=8, **options))
            assert texts[0].shape[1] > prompt.shape[1]
            assert torch.equal(*texts)
        model.train()
        model(input_ids=prompt, labels=prompt, use_cache=False).loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        model.zero_grad()
        plain.load_state_dict(model.state_dict())
    assert_made(model, engine)  # generate itself traces and plans nothing


def reloaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded], ids=["deepcopy", "pickle"])
def test_copies_stay_wrapped(copied: Callable[[nn.Module], nn.Module], engine: str) -> None:
    """A copy is wrapped, has its own weights and its own programs, and gives the same feedback."""
    model, data = lfpgraph.wrap(bert(), "lfp-0", engine=engine).eval(), batch("bert")
    model(**data).loss.backward()  # so that it holds a program, which no copy may share
    model.zero_grad()
    twin = copied(model)
    assert lfpgraph.is_wrapped(twin)
    assert_made(twin, engine, 0)
    loss = twin(**data).loss
    loss.backward()
    assert_made(twin, engine)
    assert all(p.grad is None for p in model.parameters()), "the copy's feedback stays in the copy"
    other = model(**data).loss
    other.backward()
    assert_made(model, engine)
    assert torch.equal(loss, other)
    for p, q in zip(twin.parameters(), model.parameters()):
        assert p is not q
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-8)
    assert any(p.grad.any() for p in twin.parameters())
    with torch.no_grad():  # the copy computes with its own weights
        twin.classifier.bias += 1
    torch.testing.assert_close(twin(**data).logits, model(**data).logits + 1)
    assert not lfpgraph.is_wrapped(lfpgraph.unwrap(twin)) and lfpgraph.is_wrapped(model)
