"""TRL: each trainer as it is made in its documentation, on a model that was wrapped before or after."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
from torch import Tensor, nn

import lfpgraph

from . import trl_runs
from .support import FINE, difference, gpt2, qwen3

CAUSAL = [kind for kind in trl_runs.KINDS if kind != "Reward"]
REINFORCED = ("GRPO", "RLOO")
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def loaded(kind: str, folder: Path, make: Any = None) -> Any:
    """A model as `from_pretrained` gives it: trainers load its twin from the same folder."""
    model = trl_runs.scorer() if kind == "Reward" else (make or gpt2)(**({} if make else NO_DROPOUT))
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def first_gradients(
    kind: str, folder: Path, composite: Any = None, when: str = "before", **given: Any
) -> dict[str, Tensor]:
    model = loaded(kind, folder / "model", given.pop("make", None))
    if composite is not None and when == "before":
        lfpgraph.wrap(model, composite)
    trainer, first = trl_runs.make(kind, model, folder, **given)
    if composite is not None and when == "after":
        lfpgraph.wrap(trainer.model, composite)
    trainer.train()
    return first.gradients


@pytest.mark.client("trl", "{kind}")
@pytest.mark.parametrize("kind", trl_runs.KINDS)
def test_first_step(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The gradient is the plain trainer's; feedback is what a traced program gives for the same loss of logits."""
    plain = first_gradients(kind, tmp_path)
    assert difference(first_gradients(kind, tmp_path, "gradient"), plain) < 1e-5
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        feedback = first_gradients(kind, tmp_path, FINE)
        after = first_gradients(kind, tmp_path, FINE, "after")
    assert [record.getMessage() for record in caplog.records if record.name == "lfpgraph"] == []
    assert difference(after, feedback) < 1e-6
    assert difference(feedback, plain) > 0.1

    model = loaded(kind, tmp_path / "model")
    if kind == "Reward":
        lfpgraph.wrap(model, FINE, engine="static")
    else:
        logits_of = trl_runs.statically(model, FINE)
    trainer, first = trl_runs.make(kind, model, tmp_path)
    if kind != "Reward":
        trl_runs.unfuse(trainer.model, logits_of)
    trainer.train()
    assert difference(feedback, first.gradients) < 1e-5


@pytest.mark.client("trl", "{kind} with `peft_config` (LoRA)")
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_lora(kind: str, tmp_path: Path) -> None:
    def config() -> Any:
        return {
            "peft_config": peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        }

    plain = first_gradients(kind, tmp_path, more=config())
    assert difference(first_gradients(kind, tmp_path, "gradient", more=config()), plain) < 1e-5
    before = first_gradients(kind, tmp_path, "lfp-epsilon", more=config())
    after = first_gradients(kind, tmp_path, "lfp-epsilon", "after", more=config())
    assert set(before) == set(plain) and all("lora" in name for name in before)
    assert difference(after, before) < 1e-5
    assert all(g.abs().max() > 0 for name, g in before.items() if "lora_B" in name)


@pytest.mark.client("trl", "{kind} with its own defaults: bf16, gradient checkpointing, clipping")
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_defaults(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 1.0, "make": qwen3}
    plain = first_gradients(kind, tmp_path, **options)
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        assert difference(first_gradients(kind, tmp_path, "gradient", **options), plain) < 1e-5
        assert difference(first_gradients(kind, tmp_path, "lfp-epsilon", **options), plain) > 0.1
    assert [record.getMessage() for record in caplog.records if record.name == "lfpgraph"] == []


def _lora(**options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    return {"more": {"peft_config": peft.LoraConfig(**given)}, "make": qwen3}


REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
OPTIONS: dict[str, tuple[str, Any]] = {
    "SFT: packing_strategy=bfd_split": ("SFT", lambda: {"packing": True, "packing_strategy": "bfd_split"}),
    "SFT: loss_type=dft": ("SFT", lambda: {"loss_type": "dft"}),
    "SFT: NEFTune": ("SFT", lambda: {"neftune_noise_alpha": 5.0}),
    "SFT: Adafactor, accumulation": ("SFT", lambda: {"optim": "adafactor", "gradient_accumulation_steps": 2}),
    "SFT: torch_compile": ("SFT", lambda: {"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "SFT: LoRA on all-linear": ("SFT", lambda: _lora()),
    "SFT: LoRA, checkpointing": ("SFT", lambda: {"gradient_checkpointing": True, **_lora()}),
    "SFT: LoRA, checkpointing, reentrant": ("SFT", lambda: {**REENTRANT, **_lora()}),
    "SFT: LoRA, modules_to_save": ("SFT", lambda: _lora(modules_to_save=["lm_head"])),
    "SFT: LoRA, trainable_token_indices": ("SFT", lambda: _lora(trainable_token_indices=[3, 5])),
    "DPO: ref_model given": ("DPO", lambda: {"more": {"ref_model": gpt2(**NO_DROPOUT)}}),
    "DPO: precompute_ref_log_probs": ("DPO", lambda: {"precompute_ref_log_probs": True}),
    "DPO: three losses": ("DPO", lambda: {"loss_type": ["sigmoid", "ipo", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
    "DPO: use_weighting": ("DPO", lambda: {"use_weighting": True}),
    "GRPO: beta, num_iterations": ("GRPO", lambda: {"beta": 0.1, "num_iterations": 2}),
    "GRPO: by sequences, loss_type=dr_grpo": (
        "GRPO", lambda: {"importance_sampling_level": "sequence", "loss_type": "dr_grpo"},
    ),
    "GRPO: top_entropy_quantile": ("GRPO", lambda: {"top_entropy_quantile": 0.2}),
    "RLOO: beta": ("RLOO", lambda: {"beta": 0.1}),
    "KTO: LoRA": ("KTO", lambda: _lora()),
}  # fmt: skip


@pytest.mark.client("trl", "{name}")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind, options = OPTIONS[name]
    plain = first_gradients(kind, tmp_path, **options())
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        assert difference(first_gradients(kind, tmp_path, "gradient", **options()), plain) < 1e-5
        assert difference(first_gradients(kind, tmp_path, "recorded", **options()), plain) < 1e-5
        feedback = first_gradients(kind, tmp_path, "lfp-epsilon", **options())
    assert [record.getMessage() for record in caplog.records if record.name == "lfpgraph"] == []
    assert set(feedback) == set(plain) and difference(feedback, plain) > 0.1
    if "reentrant" in name:  # which changes nothing but memory
        other = {**options(), "gradient_checkpointing": False}
        assert difference(feedback, first_gradients(kind, tmp_path, "lfp-epsilon", **other)) < 1e-5


class Count(transformers.TrainerCallback):
    """The bytes of all tensors alive at two steps."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (30, 100):
            gc.collect()
            found = {
                t.untyped_storage()._cdata: t.untyped_storage().nbytes()
                for t in gc.get_objects()
                if type(t) in (Tensor, nn.Parameter) and t.device.type != "meta"
            }
            self.bytes[state.global_step] = sum(found.values())


def run_of(kind: str, folder: Path, composite: str | None, steps: int, rate: float) -> tuple[list[float], Any, Count]:
    model = loaded(kind, folder / "model")
    if composite is not None:
        lfpgraph.wrap(model, composite)
    count = Count()
    trainer, _ = trl_runs.make(kind, model, folder, steps, num_train_epochs=100, max_steps=steps, learning_rate=rate)
    trainer.add_callback(count)
    trainer.train()
    measure = "reward" if kind in REINFORCED else "loss"
    return [entry[measure] for entry in trainer.state.log_history if measure in entry], model, count


@pytest.mark.client("trl", "{kind}: learns over 50 steps, one plan for all lengths, memory flat over 100")
@pytest.mark.parametrize("kind", trl_runs.KINDS)
def test_learns(kind: str, tmp_path: Path) -> None:
    sign = 1 if kind in REINFORCED else -1
    gains = []
    for composite, rate in ((None, 3e-3), ("lfp-epsilon", 1e-2)):
        found, model, count = run_of(kind, tmp_path, composite, 100 if composite else 50, rate)
        gains.append(sign * (sum(found[40:50]) / 10 - sum(found[:5]) / 5))
    made = lfpgraph.explain_wrap(model)
    print(kind, gains, made, count.bytes)
    assert gains[1] > 0.5 * gains[0] > 0
    assert made.plans + made.traces <= 4
    assert count.bytes[100] <= 1.02 * count.bytes[30]
