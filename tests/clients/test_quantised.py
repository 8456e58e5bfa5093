"""Quantised bases with LoRA on top: frozen weights of four or eight bits, adapters that learn by feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

import lfpgraph

from .checks import check_first_step, grads_of, wrapped
from .support import llama

RANGE = 0.2  # of the base's weights, so that its activations bend: adapters alone learn, by the plain signal


def of_bitsandbytes(folder: Path, **options: Any) -> nn.Module:
    llama(hidden_size=64, intermediate_size=128, initializer_range=RANGE).save_pretrained(folder)
    config = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def of_torchao(config: Any) -> nn.Module:
    model = llama(hidden_size=64, intermediate_size=128, initializer_range=RANGE)
    quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and "lm_head" not in name)
    return model


NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}  # fmt: skip
BASES: dict[str, Any] = {
    "bitsandbytes nf4": lambda folder: of_bitsandbytes(folder, **NF4),
    "bitsandbytes int8": lambda folder: of_bitsandbytes(folder, load_in_8bit=True),
    "torchao int8": lambda folder: of_torchao(Int8WeightOnlyConfig()),
    "torchao int4": lambda folder: of_torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4)),
}


def run(base: str, folder: Path, way: str, steps: int = 1) -> tuple[dict[str, Tensor], list[float], nn.Module]:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    if steps == 1:  # matrices of zeros take the signal itself, which is close to the gradient
        config.init_lora_weights = False
    model = wrapped(peft.get_peft_model(BASES[base](folder), config), way)
    ids = torch.randint(3, 400, (4, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found, first = [], {}
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        first = first or grads_of(model)
        optimizer.step()
        found.append(loss.item())
    return first, found, model


@pytest.mark.client("peft", "LoRA on a base of {base}")
@pytest.mark.parametrize("base", BASES)
def test_quantised_base(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    traced = "torchao" in base  # whose operations a trace can show
    check_first_step(lambda way: run(base, tmp_path, way)[0], caplog, 1e-4, "traced" if traced else None)
    (_, before, _), (_, after, model) = (run(base, tmp_path, way, 16) for way in ("plain", "wrapped"))
    print(base, before[0] - before[-1], after[0] - after[-1])
    assert after[0] - after[-1] > 0.8 * (before[0] - before[-1]) > 0
    if traced:
        lfpgraph.unwrap(model)
        report = lfpgraph.coverage(model, kwargs={"input_ids": torch.ones(2, 8, dtype=torch.long)})
        assert report.covered
