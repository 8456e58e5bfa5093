"""TRL's trainers as its documentation makes them, on a small model; and the same with the head written out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

import lfpgraph

from .support import FirstStep, gpt2, texts, tokenizer

__all__ = ["KINDS", "lora", "make", "statically", "unfuse"]

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4, "max_grad_norm": 0.0, "learning_rate": 1e-3, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "dataloader_pin_memory": False, "seed": 3, "lr_scheduler_type": "constant",
}  # fmt: skip


def _pairs() -> list[tuple[str, str, str]]:
    """A prompt, its true end, and the end of another text."""
    found = [t.split(" ") for t in texts()]
    cut = [(" ".join(w[: len(w) // 2]), " " + " ".join(w[len(w) // 2 :])) for w in found if len(w) > 3]
    return [(a, b, cut[(i + 7) % len(cut)][1]) for i, (a, b) in enumerate(cut)]


def plain_texts() -> Dataset:
    return Dataset.from_dict({"text": list(texts())})


def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": [t[:24] for t in texts()]})


def preferences() -> Dataset:
    a, b, c = zip(*_pairs())
    return Dataset.from_dict({"prompt": list(a), "chosen": list(b), "rejected": list(c)})


def comparisons() -> Dataset:
    a, b, c = zip(*_pairs())
    both = {"chosen": [x + y for x, y in zip(a, b)], "rejected": [x + y for x, y in zip(a, c)]}
    return Dataset.from_dict(both)


def triples() -> Dataset:
    a, b, c = zip(*_pairs())
    return Dataset.from_dict({"prompt": list(a), "chosen": list(b), "rejected": list(c), "reference": list(b)})


def talks() -> Dataset:
    said = [[{"role": "user", "content": a[:30]}, {"role": "assistant", "content": b[:30]}] for a, b, _ in _pairs()]
    return Dataset.from_dict({"messages": said})


def verdicts() -> Dataset:
    rows = [(a, b if i % 2 else c, bool(i % 2)) for i, (a, b, c) in enumerate(_pairs())]
    a, b, good = zip(*rows)
    return Dataset.from_dict({"prompt": list(a), "completion": list(b), "label": list(good)})


def many_letters_e(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward: the share of letters e."""
    return [10.0 * text.count("e") / max(len(text), 1) for text in completions]


GENERATION = {"num_generations": 4, "max_completion_length": 12, "temperature": 1.0}


def _maker(trainer: Any, config: Any, data: Callable[[], Dataset], extra: Any, **options: Any) -> Any:
    def made(model: nn.Module, folder: Path, chosen: dict[str, Any], **more: Any) -> Any:
        arguments = config(output_dir=str(folder), **{**COMMON, **options, **chosen})
        given = extra() if callable(extra) else extra
        return trainer(model=model, args=arguments, train_dataset=data(), processing_class=tokenizer(), **given, **more)

    return made


REWARD = {"reward_funcs": many_letters_e}
KINDS: dict[str, Any] = {
    "SFT": _maker(trl.SFTTrainer, trl.SFTConfig, plain_texts, {}, max_length=64),
    "SFT, packing (bfd)": _maker(trl.SFTTrainer, trl.SFTConfig, plain_texts, {}, max_length=64, packing=True),
    "SFT, packing (wrapped)": _maker(
        trl.SFTTrainer, trl.SFTConfig, plain_texts, {}, max_length=64, packing=True, packing_strategy="wrapped"
    ),
    "DPO": _maker(trl.DPOTrainer, trl.DPOConfig, preferences, {}, max_length=64),
    "KTO": _maker(trl.KTOTrainer, trl.KTOConfig, verdicts, {}, max_length=64),
    "GRPO": _maker(trl.GRPOTrainer, trl.GRPOConfig, prompts, REWARD, **GENERATION),
    "RLOO": _maker(trl.RLOOTrainer, trl.RLOOConfig, prompts, REWARD, **GENERATION),
    "Reward": _maker(trl.RewardTrainer, trl.RewardConfig, comparisons, {}, max_length=64),
    "ORPO": _maker(ORPOTrainer, ORPOConfig, preferences, {}, max_length=64),
    "CPO": _maker(CPOTrainer, CPOConfig, preferences, {}, max_length=64),
    "TPO": _maker(TPOTrainer, TPOConfig, triples, {}, max_length=64),
    "GMPO": _maker(GMPOTrainer, GMPOConfig, prompts, REWARD, **GENERATION),
    "Online DPO": _maker(OnlineDPOTrainer, OnlineDPOConfig, prompts, REWARD, max_new_tokens=12, max_length=64),
    "GKD": _maker(GKDTrainer, GKDConfig, talks, lambda: {"teacher_model": gpt2(5)}, max_length=64, max_new_tokens=8),
    "Distillation": _maker(
        trl.DistillationTrainer,
        trl.DistillationConfig,
        prompts,
        lambda: {"teacher_model": gpt2(5)},
        max_completion_length=12,
    ),
}


def scorer(seed: int = 0) -> Any:
    """A sequence classifier with one output: a reward model."""
    torch.manual_seed(seed)
    config = gpt2().config
    config.num_labels = 1
    return transformers.GPT2ForSequenceClassification(config)


def lora(kind: str) -> Any:
    """A configuration of LoRA for the kind's small GPT-2."""
    task = "SEQ_CLS" if kind == "Reward" else "CAUSAL_LM"
    return peft.LoraConfig(r=4, target_modules=["c_attn"], task_type=task, fan_in_fan_out=True)


def make(kind: str, model: nn.Module, folder: Path, steps: int = 1, more: Any = None, **given: Any) -> tuple[Any, Any]:
    """A trainer of a kind, and the callback that keeps its first step's gradients."""
    first = FirstStep(steps)
    trainer = KINDS[kind](model, folder, given, callbacks=[first], **(more or {}))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, first


def unfuse(model: nn.Module, logits_of: Callable[..., Tensor]) -> None:
    """Give a model, with TRL's fused head or without, the same call with these logits and torch's own log-softmax."""
    fused = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:  # a trainer that takes logits, or one that generates
            if not torch.is_grad_enabled():
                return fused(*args, **kwargs)
            return CausalLMOutput(logits=logits_of(*args, **{**kwargs, "use_cache": False}))
        labels, divisor = kwargs.pop("labels")[:, 1:], kwargs.pop("num_items_in_batch", None)
        logits = logits_of(*args, **{**kwargs, "use_cache": False})[:, :-1]
        mask = labels != -100
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0)
        entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(~mask, 0)
        loss = -chosen.sum() / (mask.sum() if divisor is None else divisor)
        with torch.no_grad():
            mean = logits.mean(-1).masked_fill(~mask, 0)
            top1 = (logits.argmax(-1) == labels) & mask
            squares = (2 * log_p).logsumexp(-1).masked_fill(~mask, 0)
        return FusedCausalLMOutput(
            loss=loss, log_probs=chosen, entropy=entropy, mean_logits=mean, is_top1=top1, label_mask=mask,
            log_sum_sq_probs=squares,
        )  # fmt: skip

    # with the signature of the model's own, which `generate` reads
    model.forward = functools.wraps(fused)(functools.partial(forward, model))


def statically(model: nn.Module, composite: Any) -> Callable[..., Tensor]:
    """The logits by a second way: the traced program of a twin that has the same parameters."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in twin.modules():
        vars(module).pop("forward", None)  # TRL's fused head, which calls the model it was made for
    lfpgraph.wrap(twin, composite, engine="static")
    return lambda *args, **kwargs: twin(*args, **kwargs).logits
