"""transformers.Trainer with the options people set."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.variables import nn_module
from torch._inductor import config as inductor
from transformers import DataCollatorForLanguageModeling, TrainingArguments

import lfpgraph

from .checks import check_first_step, difference, wrapped
from .support import FirstStep, gpt2, texts, tokenizer

PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": 4, "max_grad_norm": 0.0, "learning_rate": 1e-3, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 3,
}  # fmt: skip
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "bf16": {"bf16": True},
    "torch_compile (aot_eager)": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "torch_compile (inductor)": {"torch_compile": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing, reentrant": REENTRANT,
    "bf16 and gradient_checkpointing": {"bf16": True, "gradient_checkpointing": True},
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "workers": {"dataloader_num_workers": 2},
    "accumulation": {"gradient_accumulation_steps": 3},
    "accumulation and clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.01},
    "clipping": {"max_grad_norm": 0.01},
    "Adafactor": {"optim": "adafactor"},
    "fused AdamW": {"optim": "adamw_torch_fused"},
    "SGD": {"optim": "sgd"},
    "bitsandbytes' Lion": {"optim": "lion_32bit"},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "full_determinism": {"full_determinism": True},
    "use_cache": {"use_cache": True},
    "label_names, tokens counted": {"label_names": ["labels"], "include_num_input_tokens_seen": True},
}  # fmt: skip
# Where the traced program is no second way (it keeps no hooks), and what is: training without what saves memory, or nothing.
SECOND: dict[str, Any] = {
    "NEFTune": None, "gradient_checkpointing": {}, "gradient_checkpointing, reentrant": {},
    "bf16 and gradient_checkpointing": {"bf16": True},
}  # fmt: skip


def items() -> list[dict[str, Any]]:
    known = tokenizer()
    return [known(text, truncation=True, max_length=48) for text in texts()]


def made(folder: Path, way: str, steps: int = 1, **options: Any) -> tuple[nn.Module, Any, FirstStep]:
    """A trainer on a small GPT-2, wrapped before; dropout as GPT-2 has it."""
    torch._dynamo.reset()
    model = wrapped(gpt2(), way)
    first = FirstStep(steps)
    callbacks = [first, *options.pop("callbacks", [])]
    given = {"train_dataset": items(), **options.pop("data", {})}
    trainer = transformers.Trainer(
        model=model, args=TrainingArguments(output_dir=str(folder), **{**PLAIN, **options}), callbacks=callbacks,
        data_collator=DataCollatorForLanguageModeling(tokenizer(), mlm=False), **given,
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return model, trainer, first


def first_gradients(folder: Path, way: str, **options: Any) -> dict[str, Tensor]:
    _, trainer, first = made(folder, way, **options)
    trainer.train()
    return first.gradients


@pytest.mark.client("transformers", "Trainer: {name}")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = OPTIONS[name]
    second: Any = "traced"
    if (other := SECOND.get(name, options)) is not options:
        second = None if other is None else lambda: first_gradients(tmp_path, "wrapped", **other)
    rounding = 3e-2 if "bf16" in options else 1e-4 if "inductor" in name else 1e-5
    with inductor.patch(fallback_random=True):  # the same dropout, compiled or not
        check_first_step(lambda way: first_gradients(tmp_path, way, **options), caplog, rounding, second)


@pytest.mark.client("transformers", "Trainer: torch_compile, after a plain model of the class was trained so")
def test_compiled_after_a_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    alone = first_gradients(tmp_path, "wrapped", **options)
    monkeypatch.setattr(nn_module, "unpatched_nn_module_call_impl", nn.Module._call_impl)  # as in a new process
    plain = first_gradients(tmp_path, "plain", **options)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: None)  # with which each of these trainings begins
    assert difference(first_gradients(tmp_path, "wrapped", **options), alone) < 1e-5 < difference(alone, plain)


@pytest.mark.client(
    "transformers", "bf16 leaves nothing switched on: a plain run afterwards is bit-equal to one before"
)
def test_nothing_stays(tmp_path: Path) -> None:
    before = first_gradients(tmp_path, "plain")
    first_gradients(tmp_path, "wrapped", bf16=True)
    assert difference(first_gradients(tmp_path, "plain"), before) == 0


class Average(transformers.TrainerCallback):
    """A running mean of the weights, in a copy of the model."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mean = copy.deepcopy(kwargs["model"]).requires_grad_(False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for kept, now in zip(self.mean.parameters(), kwargs["model"].parameters()):
            kept.lerp_(now.detach(), 0.5)


@pytest.mark.client(
    "transformers", "Trainer: evaluation, best model at the end, predict, a copy of the model as its mean"
)
def test_around_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the composite `gradient` all is as in plain training; with feedback the loss falls, and what is returned fits."""
    found = {}
    for way in ("plain", "gradient", "wrapped"):
        mean = Average()
        model, trainer, _ = made(
            tmp_path / way, way, 60, max_steps=60, eval_strategy="steps", eval_steps=20, save_strategy="steps", save_steps=20,
            load_best_model_at_end=True, learning_rate=3e-3, callbacks=[mean], data={"eval_dataset": items()[:8]},
        )  # fmt: skip
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        logits = trainer.predict(items()[:8]).predictions
        mean_loss = trainer.evaluate()["eval_loss"]
        means = {name: p for name, p in mean.mean.named_parameters()}
        found[way] = dict(model.state_dict()), losses, torch.from_numpy(logits), mean_loss, means
        assert lfpgraph.is_wrapped(model) == lfpgraph.is_wrapped(mean.mean) == (way != "plain")
    assert [r.getMessage() for r in caplog.records if r.name == "lfpgraph"] == []
    for kept in (0, 4):
        assert difference(found["gradient"][kept], found["plain"][kept]) < 1e-5
        assert difference(found["wrapped"][kept], found["plain"][kept]) > 1e-3
    assert torch.equal(found["gradient"][2], found["plain"][2])
    falls = {way: losses[0] - sum(losses[-5:]) / 5 for way, (_, losses, *_) in found.items()}
    print(falls)
    assert falls["wrapped"] > 0.8 * falls["plain"] > 0
