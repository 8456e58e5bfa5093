"""TRL: each trainer as it is made in its documentation, on a model that was wrapped before or after."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
from torch import Tensor, nn

import lfpgraph

from . import trl_runs
from .checks import FINE, check_first_step, difference, wrapped
from .support import gpt2, qwen3

CAUSAL = [kind for kind in trl_runs.KINDS if kind != "Reward"]
REINFORCED = ("GRPO", "RLOO", "GMPO")
OF_HIDDEN_STATES = ("Reward", "Distillation")  # whose loss is no function of a language model's logits
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def loaded(kind: str, folder: Path, make: Any = None) -> Any:
    """A model as `from_pretrained` gives it: trainers load its twin from the same folder."""
    model = trl_runs.scorer() if kind == "Reward" else (make or gpt2)(**({} if make else NO_DROPOUT))
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def first_gradients(kind: str, folder: Path, way: str, when: str = "before", **given: Any) -> dict[str, Tensor]:
    model = loaded(kind, folder / "model", given.pop("make", None))
    if when == "before":
        wrapped(model, way)
    trainer, first = trl_runs.make(kind, model, folder, **given)
    if when == "after":
        wrapped(trainer.model, way)
    transformers.set_seed(3)  # what is sampled, whatever was drawn for the model's twin
    trainer.train()
    return first.gradients


def by_logits(kind: str, folder: Path, composite: Any = FINE, **given: Any) -> dict[str, Tensor]:
    """A second way: the trainer's model is given logits by a traced program, and torch's own log-softmax of them."""
    model = loaded(kind, folder / "model", given.pop("make", None))
    trainer, first = trl_runs.make(kind, model, folder, **given)
    trl_runs.unfuse(trainer.model, trl_runs.statically(trainer.model, composite))
    transformers.set_seed(3)
    trainer.train()
    return first.gradients


@pytest.mark.client("trl", "{kind}")
@pytest.mark.parametrize("kind", trl_runs.KINDS)
def test_first_step(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Feedback is what a traced program gives for the same loss of logits, and what a wrap after the trainer is made gives."""
    feedback = check_first_step(
        lambda way: first_gradients(kind, tmp_path, way), caplog, second="traced" if kind == "Reward" else None
    )
    assert difference(first_gradients(kind, tmp_path, "wrapped", "after"), feedback) < 1e-6
    if kind not in OF_HIDDEN_STATES:
        assert difference(first_gradients(kind, tmp_path, "fine"), by_logits(kind, tmp_path)) < 1e-5
        assert difference(feedback, by_logits(kind, tmp_path, "lfp")) < 3e-3  # the epsilon of logits that nobody sees


@pytest.mark.client("trl", "{kind} with `peft_config` (LoRA)")
@pytest.mark.parametrize("kind", [kind for kind in trl_runs.KINDS if "packing" not in kind])
def test_lora(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feedback = check_first_step(
        lambda way: first_gradients(kind, tmp_path, way, more={"peft_config": trl_runs.lora(kind)}), caplog, second=None
    )
    after = first_gradients(kind, tmp_path, "wrapped", "after", more={"peft_config": trl_runs.lora(kind)})
    assert any("lora" in name for name in feedback)
    assert difference(after, feedback) < 1e-5
    assert all(g.abs().max() > 0 for name, g in feedback.items() if "lora_B" in name)
    if kind not in OF_HIDDEN_STATES:
        fine = first_gradients(kind, tmp_path, "fine", more={"peft_config": trl_runs.lora(kind)})
        assert difference(fine, by_logits(kind, tmp_path, more={"peft_config": trl_runs.lora(kind)})) < 1e-5


@pytest.mark.client("trl", "{kind} with its own defaults: bf16, gradient checkpointing, clipping")
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO", "RLOO", "KTO", "Reward"])
def test_defaults(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints change nothing but memory."""
    options: dict[str, Any] = {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 1.0}
    options.update({} if kind == "Reward" else {"make": qwen3})
    check_first_step(
        lambda way: first_gradients(kind, tmp_path, way, **options), caplog, 5e-2,
        lambda: first_gradients(kind, tmp_path, "wrapped", **{**options, "gradient_checkpointing": False}),
    )  # fmt: skip


def _lora(**options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    return {"more": {"peft_config": peft.LoraConfig(**given)}, "make": qwen3}


NOISY = {"SFT: NEFTune"}  # whose noise is drawn in a hook of the model that is not run
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
    "KTO: precompute_ref_log_probs": ("KTO", lambda: {"precompute_ref_log_probs": True}),
    "RLOO: LoRA, checkpointing": ("RLOO", lambda: {"gradient_checkpointing": True, **_lora()}),
    "GRPO: LoRA, checkpointing": ("GRPO", lambda: {"gradient_checkpointing": True, **_lora()}),
    "GRPO: accumulation, scale_rewards=batch": (
        "GRPO", lambda: {"gradient_accumulation_steps": 2, "scale_rewards": "batch"},
    ),
    "SFT: assistant_only_loss off, completion_only_loss": ("SFT", lambda: {"completion_only_loss": False}),
    "DPO: LoRA, two losses": ("DPO", lambda: {"loss_type": ["sigmoid", "sft"], **_lora()}),
    "DPO: sync_ref_model": ("DPO", lambda: {"sync_ref_model": True, "ref_model_sync_steps": 1}),
}  # fmt: skip


@pytest.mark.client("trl", "{name}")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind, options = OPTIONS[name]
    saves_memory = "checkpointing" in name  # by a hook on the embedding, which no traced program keeps

    def same_without() -> dict[str, Tensor]:
        return first_gradients(kind, tmp_path, "wrapped", **{**options(), "gradient_checkpointing": False})

    check_first_step(
        lambda way: first_gradients(kind, tmp_path, way, **options()),
        caplog,
        second=same_without if saves_memory else None,
    )
    if not saves_memory and name not in NOISY:
        fine = first_gradients(kind, tmp_path, "fine", **options())
        assert difference(fine, by_logits(kind, tmp_path, **options())) < 1e-5


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


def run_of(kind: str, folder: Path, way: str, steps: int, rate: float) -> tuple[list[float], Any, Count]:
    model = wrapped(loaded(kind, folder / "model"), way)
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
    for way, steps in (("plain", 50), ("wrapped", 100)):
        found, model, count = run_of(kind, tmp_path, way, steps, 3e-3)
        gains.append(sign * (sum(found[40:50]) / 10 - sum(found[:5]) / 5))
    made = lfpgraph.explain_wrap(model)
    print(kind, gains, made, count.bytes)
    assert gains[1] > 0.8 * gains[0] > 0
    assert made.plans + made.traces <= 4
    assert count.bytes[100] <= 1.02 * count.bytes[30]
