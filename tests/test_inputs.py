"""Example inputs: every kind of transformers model runs on them, on real, meta and fake tensors; plain modules too."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from lfpgraph.models_zoo.torch_models import LSTMClassifier, lenet, mlp, vgg
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

import lfpgraph
from lfpgraph.errors import InputError
from lfpgraph.inputs.examples import example_inputs

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SMALL, "vocab_size": 99, "num_key_value_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}


def _clip() -> Any:
    return transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": 99, "eos_token_id": 98}, vision_config=VISION, projection_dim=16
    )


def _llava() -> Any:
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_id=7,
    )


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        image_token_id=7, video_token_id=8, vision_start_token_id=9, vision_end_token_id=10,
    )  # fmt: skip


def _whisper() -> Any:
    return transformers.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, eos_token_id=2,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20, pad_token_id=0,
        bos_token_id=1, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


def _wav2vec2() -> Any:
    return transformers.Wav2Vec2Config(
        **SMALL, conv_dim=[8] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    )


# class, configuration, shapes of the tensors (batch 2, length 16)
CASES: dict[str, tuple[str, Any, dict[str, tuple[int, ...]]]] = {
    "text": (
        "BertForMaskedLM",
        lambda: transformers.BertConfig(**SMALL, vocab_size=99),
        {"input_ids": (2, 16), "attention_mask": (2, 16)},
    ),
    "decoder": (
        "LlamaForCausalLM",
        lambda: transformers.LlamaConfig(**TEXT),
        {"input_ids": (2, 16), "attention_mask": (2, 16)},
    ),
    "encoder-decoder": (
        "T5ForConditionalGeneration",
        lambda: transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4),
        {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 16)},
    ),
    "image": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**VISION),
        {"pixel_values": (2, 3, 32, 32)},
    ),
    "video": (
        "VideoMAEForVideoClassification",
        lambda: transformers.VideoMAEConfig(**VISION, num_frames=4),
        {"pixel_values": (2, 4, 3, 32, 32)},
    ),
    "waveform": ("Wav2Vec2ForCTC", _wav2vec2, {"input_values": (2, 5200)}),
    "mel": (
        "WhisperForConditionalGeneration",
        _whisper,
        {"input_features": (2, 80, 40), "decoder_input_ids": (2, 16)},
    ),
    "spectrogram": (
        "ASTForAudioClassification",
        lambda: transformers.ASTConfig(**SMALL, max_length=64),
        {"input_values": (2, 64, 128)},
    ),
    "two towers": (
        "CLIPModel",
        _clip,
        {"input_ids": (2, 16), "attention_mask": (2, 16), "pixel_values": (2, 3, 32, 32)},
    ),
    "placeholders": (
        "LlavaForConditionalGeneration",
        _llava,
        {"input_ids": (2, 24), "attention_mask": (2, 24), "pixel_values": (2, 3, 32, 32)},
    ),
    "patch grid": (
        "Qwen2VLForConditionalGeneration",
        _qwen2_vl,
        {
            "input_ids": (2, 12),
            "attention_mask": (2, 12),
            "pixel_values": (32, 96),
            "image_grid_thw": (2, 3),
            "mm_token_type_ids": (2, 12),
        },
    ),
    "series": (
        "PatchTSTForPrediction",
        lambda: transformers.PatchTSTConfig(
            num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=16, ffn_dim=16,
            num_hidden_layers=1, num_attention_heads=2,
        ),
        {"past_values": (2, 32, 3)},
    ),
}  # fmt: skip


def _build(name: str) -> nn.Module:
    cls, config, _ = CASES[name]
    return getattr(transformers, cls)(config())


def _shapes(kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in kwargs.items() if isinstance(value, Tensor)}


def _wanted(name: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of a case, for what the model's forward takes: some arguments are younger than others."""
    return {k: v for k, v in CASES[name][2].items() if k in inspect.signature(model.forward).parameters}


@pytest.mark.parametrize("name", CASES)
def test_runs_and_keeps_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = _build(name)
    model.get_submodule(next(n for n, _ in model.named_modules() if n)).eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    args, kwargs = example_inputs(model)
    assert args == ()
    wanted = _wanted(name, model)
    assert {k: v for k, v in _shapes(kwargs).items() if k in wanted} == wanted
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    again = example_inputs(model)[1]
    assert all(torch.equal(v, again[k]) for k, v in kwargs.items() if isinstance(v, Tensor))
    with torch.no_grad():
        model.eval()(**kwargs)
    assert kwargs.get("use_cache") in (None, False) and "labels" not in kwargs


@pytest.mark.parametrize("name", CASES)
def test_same_shapes_on_meta(name: str) -> None:
    if transformers.__version__.startswith("5.0.") and name in ("decoder", "placeholders"):
        pytest.skip("transformers 5.0 itself does not run this model on tensors without values")
    with torch.device("meta"):
        model = _build(name)
    kwargs, wanted = example_inputs(model)[1], _wanted(name, model)
    assert {k: v for k, v in _shapes(kwargs).items() if k in wanted} == wanted
    assert all(v.device.type == "meta" for v in kwargs.values() if isinstance(v, Tensor))


@pytest.mark.parametrize("inside", [True, False])
def test_fake_model(inside: bool) -> None:
    """Inside its mode or out of it, and the inputs trace with the model."""
    mode = FakeTensorMode()
    with mode:
        model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 3))
        bert = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, vocab_size=99))
        if inside:
            args, kwargs = example_inputs(model)[0], example_inputs(bert)[1]
    if not inside:
        args, kwargs = example_inputs(model)[0], example_inputs(bert)[1]
    found = [*args, kwargs["input_ids"]]
    assert all(isinstance(t, FakeTensor) and t.fake_mode is mode and t.dtype == torch.int64 for t in found)


def test_batch_length_and_dtype() -> None:
    model = _build("two towers").to(torch.bfloat16)
    kwargs = example_inputs(model, batch=3, length=5)[1]
    assert kwargs["input_ids"].shape == (3, 5) and kwargs["pixel_values"].dtype == torch.bfloat16


def test_wrapped_model() -> None:
    model = lfpgraph.wrap(_build("image"))
    args, kwargs = example_inputs(model)
    model(*args, **kwargs).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_large_models_run_in_shapes_only() -> None:
    """A model of more than 100 M parameters is never computed on: only its shapes are."""
    config = transformers.ViTConfig(num_hidden_layers=1, intermediate_size=65_536)
    model = transformers.ViTForImageClassification(config)
    hits = []
    model.classifier.register_forward_hook(lambda m, args, out: hits.append(type(out)))
    assert example_inputs(model)[1]["pixel_values"].shape == (2, 3, 224, 224)
    assert hits and all(issubclass(kind, FakeTensor) for kind in hits)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (mlp, (2, 20)),
        (lenet, (2, 1, 28, 28)),
        (vgg, (2, 3, 16, 16)),
        (LSTMClassifier, (2, 16, 4)),
        (lambda: nn.GRU(5, 6), (16, 2, 5)),
        (lambda: nn.GRUCell(5, 6), (2, 5)),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), (2, 16)),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 20)), (2, 3, 20)),
        (lambda: nn.Conv3d(2, 4, 3), (2, 2, 16, 32, 32)),
    ],
)
def test_plain_modules(build: Any, shape: tuple[int, ...]) -> None:
    model = build()
    args, kwargs = example_inputs(model)
    assert not kwargs and tuple(args[0].shape) == shape
    model(*args)


def test_plain_module_without_a_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match="Own.*by hand"):
        example_inputs(Own())
    with pytest.raises(InputError, match="at least 1"):
        example_inputs(nn.Linear(2, 2), batch=0)


def test_unknown_argument_is_named() -> None:
    class Odd(transformers.BertModel):
        def forward(self, input_ids: Tensor, moon_phase: Tensor) -> Any:
            return super().forward(input_ids)

    with pytest.raises(InputError, match=r"Odd\.forward needs moon_phase.*by hand"):
        example_inputs(Odd(transformers.BertConfig(**SMALL)))


def test_nothing_runs() -> None:
    class Broken(transformers.BertModel):
        def forward(self, input_ids: Tensor) -> Any:
            raise ValueError("no such luck")

    with pytest.raises(InputError, match="no such luck.*by hand"):
        example_inputs(Broken(transformers.BertConfig(**SMALL)))
