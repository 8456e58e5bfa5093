"""A configuration for every tuner of PEFT, on a small GPT-2, Llama or BERT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import nn

from .support import llama

__all__ = ["KINDS", "adapted"]

_QV = {"target_modules": ["q_proj", "v_proj"]}
_CAUSAL = {"task_type": "CAUSAL_LM"}


def _prompt(config: Any, **options: Any) -> Callable[[], Any]:
    return lambda: config(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)


def _of(config: Any, **options: Any) -> Callable[[], Any]:
    return lambda: config(**{**_CAUSAL, **_QV, **options})


KINDS: dict[str, Callable[[], Any]] = {
    "LoRA": _of(peft.LoraConfig, r=4),
    "rsLoRA": _of(peft.LoraConfig, r=4, use_rslora=True),
    "DoRA": _of(peft.LoraConfig, r=4, use_dora=True),
    "PiSSA": _of(peft.LoraConfig, r=4, init_lora_weights="pissa"),
    "OLoRA": _of(peft.LoraConfig, r=4, init_lora_weights="olora"),
    "LoRA on embeddings": _of(peft.LoraConfig, r=4, target_modules=["embed_tokens", "q_proj"]),
    "LoRA with modules_to_save": _of(peft.LoraConfig, r=4, modules_to_save=["lm_head"]),
    "LoRA with dropout and bias": _of(peft.LoraConfig, r=4, lora_dropout=0.1, lora_bias=True),
    "AdaLoRA": _of(peft.AdaLoraConfig, init_r=6, target_r=4, total_step=100, tinit=10, tfinal=20),
    "IA3": _of(peft.IA3Config, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": _of(peft.VeraConfig, r=8),
    "VB-LoRA": _of(peft.VBLoRAConfig, r=4, num_vectors=16, vector_length=8),
    "LoHa": _of(peft.LoHaConfig, r=4),
    "LoKr": _of(peft.LoKrConfig, r=4),
    "OFT": _of(peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False),
    "OFT, Neumann": _of(peft.OFTConfig, oft_block_size=4),
    "BOFT": _of(peft.BOFTConfig, boft_block_size=4),
    "FourierFT": _of(peft.FourierFTConfig, n_frequency=32),
    "HRA": _of(peft.HRAConfig, r=4),
    "LN-tuning": _of(peft.LNTuningConfig, target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
    "trainable tokens": _of(peft.TrainableTokensConfig, token_indices=[3, 40, 50, 90], target_modules=["embed_tokens"]),
    "prompt tuning": _prompt(peft.PromptTuningConfig),
    "prefix tuning": _prompt(peft.PrefixTuningConfig),
    "prefix tuning with projection": _prompt(peft.PrefixTuningConfig, prefix_projection=True, encoder_hidden_size=16),
    "p-tuning": _prompt(peft.PromptEncoderConfig, encoder_hidden_size=16),
    "p-tuning, LSTM": _prompt(peft.PromptEncoderConfig, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"),
    "multitask prompt tuning": _prompt(peft.MultitaskPromptTuningConfig, num_tasks=2),
    "adaption prompt": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
    "poly": _of(peft.PolyConfig, r=4, n_tasks=2, n_skills=2),
    "RandLoRA": _of(peft.RandLoraConfig, r=4),
    "RoAd": _of(peft.RoadConfig, group_size=4),
    "MiSS": _of(peft.MissConfig, r=4),
    "SHiRA": _of(peft.ShiraConfig, r=4),
    "C3A": _of(peft.C3AConfig, block_size=4),
    "WaveFT": _of(peft.WaveFTConfig, n_frequency=32),
    "DeLoRA": _of(peft.DeloraConfig, r=4),
    "GraLoRA": _of(peft.GraloraConfig, r=4, gralora_k=2),
    "OSF": _of(peft.OSFConfig),
    "BEFT": _of(peft.BeftConfig),
    "Lily": _of(peft.LilyConfig),
    "FRoD": _of(peft.FrodConfig),
    "PVeRA": _of(peft.PveraConfig),
    "GLoRA": _of(peft.GloraConfig),
    "UniLoRA": _of(peft.UniLoraConfig),
    "AdaMSS": _of(peft.AdamssConfig, r=8, num_subspaces=2),
    "CPT": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[3, 40, 50, 90], cpt_mask=[1, 1, 1, 1], cpt_tokens_type_mask=[1, 2, 3, 4]
    ),
    "HiRA": _of(peft.HiraConfig, r=4),
    "Cartridge": _prompt(peft.CartridgeConfig),
    "TinyLoRA": _of(peft.TinyLoraConfig),
    "PSOFT": _of(peft.PsoftConfig, r=4),
    "PEANuT": _of(peft.PeanutConfig, r=4),
    "DEFT": _of(peft.DeftConfig, r=4),
    "LoRA, BD-LoRA": _of(
        peft.LoraConfig,
        r=4,
        use_bdlora=peft.BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2),
    ),
    "LoRA, MonteCLoRA": _of(peft.LoraConfig, r=4, monteclora_config=peft.MontecloraConfig()),
    "LoRA, VeLoRA": _of(peft.LoraConfig, r=4, velora_config=peft.VeloraConfig(num_groups=4)),
    "LoRA, orthogonal": _of(peft.LoraConfig, r=4, init_lora_weights="orthogonal"),
    "LoRA, target_parameters": _of(
        peft.LoraConfig, r=4, target_modules=[], target_parameters=["q_proj.weight", "v_proj.weight"]
    ),
    "LoRA, layer_replication": _of(peft.LoraConfig, r=4, layer_replication=[(0, 2), (1, 2)]),
    "aLoRA": _of(peft.LoraConfig, r=4, alora_invocation_tokens=[3, 40]),
}
if hasattr(peft, "ShadowConfig"):  # since PEFT 0.21
    KINDS |= {
        "Shadow": lambda: peft.ShadowConfig(task_type="CAUSAL_LM", r=4),
        "Supertuning": _of(peft.SupertuningConfig),
        "LoRA, KaSA": _of(peft.LoraConfig, r=4, kasa_config=peft.KasaConfig()),
    }


def adapted(kind: str, seed: int = 0, **options: Any) -> nn.Module:
    base = llama(seed, **options)
    torch.manual_seed(seed + 1)
    return peft.get_peft_model(base, KINDS[kind]())
