"""transformers' models of many tasks with their own losses (`labels=`); caches, generation, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from .checks import check_first_step, difference, grads_of, wrapped
from .support import gpt2, llama

SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}


def ids(*size: int, most: int = 60) -> Tensor:
    return torch.randint(3, most, size, generator=torch.Generator().manual_seed(1))


def noise(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(2))


def tokens() -> tuple[nn.Module, dict[str, Any]]:
    model = hf.BertForTokenClassification(hf.BertConfig(**SMALL, num_labels=5))
    labels = ids(4, 12, most=8) - 3
    labels[:, 10:] = -100
    return model, {"input_ids": ids(4, 12), "labels": labels}


def answers() -> tuple[nn.Module, dict[str, Any]]:
    model = hf.BertForQuestionAnswering(hf.BertConfig(**SMALL))
    places = {"start_positions": torch.tensor([1, 2, 3, 4]), "end_positions": torch.tensor([3, 3, 5, 9])}
    return model, {"input_ids": ids(4, 12), **places}


def speech() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.Wav2Vec2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_kernel=(8, 4), conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0, ctc_loss_reduction="mean", pad_token_id=0,
    )  # fmt: skip
    return hf.Wav2Vec2ForCTC(config), {"input_values": noise(2, 400), "labels": ids(2, 6, most=20)}


def pictures_and_texts() -> tuple[nn.Module, dict[str, Any]]:
    text = {**SMALL, "projection_dim": 8, "eos_token_id": 59, "bos_token_id": 1, "pad_token_id": 0}
    config = hf.CLIPConfig(text_config=text, vision_config={**VISION, "projection_dim": 8}, projection_dim=8)
    return hf.CLIPModel(config), {"input_ids": ids(3, 9), "pixel_values": noise(3, 3, 16, 16), "return_loss": True}


def llava() -> tuple[nn.Module, dict[str, Any]]:
    text = hf.LlamaConfig(**SMALL, num_key_value_heads=2)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=text, image_token_index=59, vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    given = ids(2, 12, most=50)
    given[:, 1:5] = 59
    return hf.LlavaForConditionalGeneration(config), {
        "input_ids": given,
        "pixel_values": noise(2, 3, 16, 16),
        "labels": given,
    }


def qwen_vl() -> tuple[nn.Module, dict[str, Any]]:
    places = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**SMALL, "num_key_value_heads": 2, "rope_parameters": places}
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    config = hf.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=58, video_token_id=57, vision_start_token_id=56,
        vision_end_token_id=55,
    )  # fmt: skip
    given = ids(2, 12, most=50)
    given[:, 1], given[:, 2:6], given[:, 6] = 56, 58, 55
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    pixels = noise(32, 3 * 2 * 4 * 4)
    types = (given == 58).long()
    return hf.Qwen2VLForConditionalGeneration(config), {
        "input_ids": given, "pixel_values": pixels, "image_grid_thw": grid, "labels": given, "mm_token_type_ids": types,
    }  # fmt: skip


def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.MixtralConfig(
        **SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True
    )
    return hf.MixtralForCausalLM(config), {"input_ids": ids(2, 10), "labels": ids(2, 10)}


def mamba() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2)
    return hf.MambaForCausalLM(config), {"input_ids": ids(2, 10), "labels": ids(2, 10)}


def whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
        encoder_layerdrop=0.4, decoder_layerdrop=0.4, pad_token_id=0, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config), {"input_features": noise(2, 8, 40), "labels": ids(2, 7)}


def t5() -> tuple[nn.Module, dict[str, Any]]:
    config = hf.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return hf.T5ForConditionalGeneration(config), {"input_ids": ids(3, 8), "labels": ids(3, 6)}


TASKS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "token classification": tokens, "question answering": answers, "CTC (wav2vec2)": speech, "CLIP": pictures_and_texts,
    "LLaVA": llava, "Qwen2-VL": qwen_vl, "Mixtral with its router's loss": mixtral, "Mamba": mamba,
    "Whisper with layerdrop": whisper, "T5": t5,
}  # fmt: skip


UNTRACED = {
    "Qwen2-VL",
    "Whisper with layerdrop",
    "Mixtral with its router's loss",
}  # they decide by values, or have hooks inside


@pytest.mark.client("transformers", "{task}")
@pytest.mark.parametrize("task", TASKS)
def test_task(task: str, caplog: pytest.LogCaptureFixture) -> None:
    """Steps in training mode, each with the same draws; the gradient is the plain one at all of them, and feedback learns."""

    def run(way: str, steps: int = 1) -> tuple[list[dict[str, Tensor]], list[float]]:
        torch.manual_seed(0)
        model, batch = TASKS[task]()
        wrapped(model, way)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        found, losses = [], []
        for i in range(steps):
            torch.manual_seed(i % 2)
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            found.append(grads_of(model))
            losses.append(loss.item())
            optimizer.step()
        return found, losses

    check_first_step(lambda way: run(way)[0][0], caplog, 1e-4, None if task in UNTRACED else "traced")
    plain, before = run("plain", 12)
    for got, want in zip(run("gradient", 4)[0], plain):
        assert difference(got, want) < 1e-5
    _, after = run("wrapped", 12)
    falls = [losses[0] + losses[1] - losses[-1] - losses[-2] for losses in (before, after)]
    print(task, falls)
    assert falls[1] > 0.8 * falls[0] > 0


@pytest.mark.client("transformers", "`past_key_values` passed in: the user's cache stays sound")
def test_cache() -> None:
    prompt, rest = ids(2, 5), ids(2, 4)
    found = []
    for way in ("plain", "gradient", "wrapped"):
        model = wrapped(llama(0), way)
        for _ in range(2):
            model.zero_grad()
            cache = hf.DynamicCache(config=model.config)
            with torch.no_grad():
                model(input_ids=prompt, past_key_values=cache, use_cache=True)
            out = model(input_ids=rest, past_key_values=cache, use_cache=True, labels=rest)
            out.loss.backward()
        keys = cache.layers[0].keys
        assert keys.shape[2] == 9 and type(keys) is Tensor and out.past_key_values is cache
        found.append((grads_of(model), keys.detach(), out.logits.detach()))
    assert difference(found[1][0], found[0][0]) == 0 and difference(found[2][0], found[0][0]) > 0.1
    assert all(torch.equal(found[0][i], f[i]) for f in found[1:] for i in (1, 2))


@pytest.mark.client("transformers", "Seq2SeqTrainer with generation, best model at the end, resumed")
def test_seq2seq(tmp_path: Path) -> None:
    def trainer(way: str, folder: Path, steps: int = 4) -> Any:
        torch.manual_seed(0)
        model, batch = t5()
        wrapped(model, way)
        items = [{k: v[i % 3] for k, v in batch.items()} for i in range(12)]
        arguments = hf.Seq2SeqTrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=1e-2, report_to=[],
            use_cpu=True, predict_with_generate=True, generation_max_length=6, eval_strategy="steps", eval_steps=2, save_steps=2,
            load_best_model_at_end=True, metric_for_best_model="loss", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        return hf.Seq2SeqTrainer(model=model, args=arguments, train_dataset=items, eval_dataset=items[:3])

    def weights(made: Any) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in made.model.state_dict().items()}

    found = {}
    for way in ("plain", "gradient", "wrapped"):
        made = trainer(way, tmp_path / way)
        made.train()
        found[way] = weights(made)
        assert made.state.best_model_checkpoint is not None
    assert difference(found["gradient"], found["plain"]) < 1e-5
    assert difference(found["wrapped"], found["plain"]) > 1e-3
    again = trainer("wrapped", tmp_path / "wrapped")
    again.train(resume_from_checkpoint=str(tmp_path / "wrapped" / "checkpoint-2"))
    assert difference(weights(again), found["wrapped"]) < 1e-5


RANKS = """
import sys, torch, transformers, lfpgraph
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from transformers import DataCollatorForLanguageModeling
from tests.clients.support import gpt2, tokenizer
from tests.clients.test_trainer import PLAIN, items
file, processes, sharded = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sharded"
model = lfpgraph.wrap(gpt2(attn_pdrop=0., resid_pdrop=0., embd_pdrop=0.))
options = {**PLAIN, "learning_rate": 1.0, "per_device_train_batch_size": 8 // processes, "max_steps": 3}
if sharded:
    options.update(fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": ["GPT2Block"]})
    made = AcceleratorState.__init__
    def with_shards(self, *args, fsdp_plugin=None, **kwargs):  # which accelerate leaves out on CPUs
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin or self.fsdp_plugin
    AcceleratorState.__init__ = with_shards
trainer = transformers.Trainer(model=model, args=transformers.TrainingArguments(output_dir=file + "-out", optim="sgd", **options),
    train_dataset=items(), data_collator=DataCollatorForLanguageModeling(tokenizer(), mlm=False))
trainer.train()
assert trainer.accelerator.num_processes == processes
assert sharded == all(hasattr(p, "full_tensor") for p in trainer.model.parameters())
state = {k: (v.full_tensor() if sharded else v).clone() for k, v in trainer.model.state_dict().items()}
if trainer.is_world_process_zero(): torch.save({k.replace("module.", ""): v for k, v in state.items()}, file)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29513"]
LAUNCHERS = {
    "torchrun": (TORCHRUN, "whole"),
    "torchrun, FSDP2": (TORCHRUN, "sharded"),
    "accelerate launch --multi_gpu": (
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=29514"], "whole",
    ),  # --cpu would start one process, whatever --num_processes says
}  # fmt: skip


def _moved(file: Path, start: list[str], processes: int, how: str) -> dict[str, Tensor]:
    """How far the weights are from where they began, as trained in so many processes."""
    script = file.with_suffix(".py")
    script.write_text(RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, *start, str(script), str(file), str(processes), how]
    subprocess.run(command, check=True, env=environment, timeout=500)
    return {name: weight - gpt2().state_dict()[name] for name, weight in torch.load(file).items()}


@pytest.fixture(scope="module")
def moved_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return _moved(tmp_path_factory.mktemp("alone") / "weights", [], 1, "whole")


@pytest.mark.client("transformers", "Trainer under {launcher}, two processes")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes(launcher: str, moved_alone: dict[str, Tensor], tmp_path: Path) -> None:
    start, how = LAUNCHERS[launcher]
    assert difference(_moved(tmp_path / "weights", start, 2, how), moved_alone) < 1e-2
