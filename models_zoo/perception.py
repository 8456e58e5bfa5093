"""Entries from transformers that see and hear. Configurations as published; what is not named is the default."""

from __future__ import annotations

from typing import Any

from .registry import images
from .registry import transformers_entry as _hf

__all__ = ["PERCEPTION"]


def _resnet(**config: Any) -> dict[str, Any]:
    """A ResNet-50 as the backbone of a detector."""
    return {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"], **config}


_SMALL_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_SPEECH: dict[str, Any] = {"layerdrop": 0.0, "mask_time_prob": 0.0}
_SMALL_SPEECH: dict[str, Any] = {
    "conv_dim": [8] * 7,
    "num_codevectors_per_group": 8,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
}

CNN = [
    _hf("resnet-50", "CNN", "ResNetForImageClassification", num_labels=1000, inputs=images(),
        tiny={"embedding_size": 8, **_STAGES}),
    _hf("convnext-tiny", "CNN", "ConvNextForImageClassification", num_labels=1000, inputs=images(), tiny=_STAGES),
    _hf("convnextv2-tiny", "CNN", "ConvNextV2ForImageClassification", num_labels=1000, inputs=images(), tiny=_STAGES),
    _hf("dinov3-convnext-tiny", "CNN", "DINOv3ConvNextModel", inputs=images(), tiny=_STAGES),
    _hf("efficientnet-b0", "CNN", "EfficientNetForImageClassification", num_labels=1000, width_coefficient=1.0,
        depth_coefficient=1.0, hidden_dim=1280, image_size=224, dropout_rate=0.2, inputs=images(),
        tiny={"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}),
    _hf("mobilenet-v1", "CNN", "MobileNetV1ForImageClassification", num_labels=1001, inputs=images(),
        tiny={"depth_multiplier": 0.25, "classifier_dropout_prob": 0.1}),
    _hf("mobilenet-v2", "CNN", "MobileNetV2ForImageClassification", num_labels=1001, inputs=images(),
        tiny={"depth_multiplier": 0.25, "classifier_dropout_prob": 0.1}),
    _hf("regnet-y-040", "CNN", "RegNetForImageClassification", num_labels=1000, hidden_sizes=[128, 192, 512, 1088],
        depths=[2, 6, 12, 2], groups_width=64, inputs=images(), tiny={"embedding_size": 8, "groups_width": 4,
        **_STAGES}),
    _hf("bit-50", "CNN", "BitForImageClassification", num_labels=1000, inputs=images(), tiny={"num_groups": 4,
        "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}),
    _hf("poolformer-s12", "CNN", "PoolFormerForImageClassification", num_labels=1000, inputs=images(),
        tiny={"hidden_sizes": [8, 8, 16, 16]}),
    _hf("focalnet-tiny", "CNN", "FocalNetForImageClassification", num_labels=1000, tiny={"embed_dim": 8,
        "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    _hf("textnet-tiny", "CNN", "TextNetForImageClassification", inputs=images(), tiny={"stem_out_channels": 8,
        "hidden_sizes": [8, 8, 8, 8, 8]}),
    _hf("hgnet-v2-l", "CNN", "HGNetV2ForImageClassification", inputs=images(), tiny={"stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 16, 16], "hidden_sizes": [16, 16, 16, 16], "stage_numb_of_layers": [2, 2, 2, 2]}),
]  # fmt: skip

VIT = [
    _hf("vit-b16", "ViT", "ViTForImageClassification", num_labels=1000),
    _hf("deit-b16-distilled", "ViT", "DeiTForImageClassificationWithTeacher", num_labels=1000),
    _hf("beit-b16", "ViT", "BeitForImageClassification", num_labels=1000, use_relative_position_bias=True,
        use_shared_relative_position_bias=False, use_absolute_position_embeddings=False),
    _hf("dinov2-base", "ViT", "Dinov2Model", patch_size=14, image_size=518),
    _hf("dinov3-vits16", "ViT", "DINOv3ViTModel"),
    _hf("ijepa-huge", "ViT", "IJepaModel", hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
        intermediate_size=5120, patch_size=14),
    _hf("vit-mae-base", "ViT", "ViTMAEForPreTraining"),
    _hf("swin-tiny", "ViT", "SwinForImageClassification", num_labels=1000, tiny={"embed_dim": 8, "depths": [1, 1],
        "num_heads": [2, 2], "window_size": 4}),
    _hf("swinv2-tiny", "ViT", "Swinv2ForImageClassification", num_labels=1000, image_size=256, window_size=8,
        tiny={"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
    _hf("hiera-base", "ViT", "HieraForImageClassification", num_labels=1000, tiny={"image_size": [224, 224],
        "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "hidden_size": None}),
    _hf("pvt-tiny", "ViT", "PvtForImageClassification", num_labels=1000, tiny={"hidden_sizes": [8, 8, 16, 16]}),
    _hf("pvt-v2-b0", "ViT", "PvtV2ForImageClassification", num_labels=1000, tiny={"hidden_sizes": [8, 8, 16, 16]}),
    _hf("videomae-base", "ViT", "VideoMAEForVideoClassification", num_labels=400, tiny={"image_size": 32}),
    _hf("timesformer-base", "ViT", "TimesformerForVideoClassification", num_labels=400, tiny={"image_size": 32}),
    _hf("vivit-base", "ViT", "VivitForVideoClassification", num_labels=400, tiny={"tubelet_size": [2, 16, 16]}),
]  # fmt: skip

HYBRID = [
    _hf("cvt-13", "hybrid CNN-transformer", "CvtForImageClassification", num_labels=1000, inputs=images(),
        tiny={"embed_dim": [8, 8, 16], "depth": [1, 2, 3], "num_heads": [1, 2, 2], "patch_stride": [4, 2, 2]}),
    _hf("mobilevit-small", "hybrid CNN-transformer", "MobileViTForImageClassification", num_labels=1000,
        tiny={"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]}),
    _hf("mobilevitv2-1.0", "hybrid CNN-transformer", "MobileViTV2ForImageClassification", num_labels=1000,
        tiny={"width_multiplier": 0.25, "base_attn_unit_dims": [32, 32, 32], "n_attn_blocks": [1, 1, 1]}),
    _hf("levit-128s", "hybrid CNN-transformer", "LevitForImageClassification", num_labels=1000,
        tiny={"image_size": 64, "hidden_sizes": [16, 32, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8]}),
    _hf("swiftformer-xs", "hybrid CNN-transformer", "SwiftFormerForImageClassification", num_labels=1000,
        tiny={"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
]  # fmt: skip

DENSE = [
    _hf("detr-resnet-50", "detection", "DetrForObjectDetection", backbone_config=_resnet(out_features=["stage4"]),
        inputs=images(512, 64), tiny={"backbone_config": _resnet(out_features=["stage4"], **_SMALL_RESNET)}),
    _hf("conditional-detr-resnet-50", "detection", "ConditionalDetrForObjectDetection",
        backbone_config=_resnet(out_features=["stage4"]), inputs=images(512, 64),
        tiny={"backbone_config": _resnet(out_features=["stage4"], **_SMALL_RESNET)}),
    _hf("deformable-detr-resnet-50", "detection", "DeformableDetrForObjectDetection", backbone_config=_resnet(),
        inputs=images(512, 64), tiny={"backbone_config": _resnet(**_SMALL_RESNET)}),
    _hf("rt-detr-r50", "detection", "RTDetrForObjectDetection", inputs=images(640, 64)),
    _hf("yolos-small", "detection", "YolosForObjectDetection", hidden_size=384, num_attention_heads=6,
        intermediate_size=1536, tiny={"image_size": [64, 64]}),
    _hf("segformer-b0", "segmentation", "SegformerForSemanticSegmentation", num_labels=150, inputs=images(512, 64),
        tiny={"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}),
    _hf("dpt-large", "segmentation", "DPTForDepthEstimation", image_size=384, hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, intermediate_size=4096, backbone_out_indices=[5, 11, 17, 23],
        tiny={"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8]}),
    _hf("mask2former-swin-small", "segmentation", "Mask2FormerForUniversalSegmentation", inputs=images(384, 64),
        tiny={"backbone_config": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "window_size": 2,
        "num_heads": [1, 2, 2, 2], "out_features": ["stage1", "stage2", "stage3", "stage4"]}}),
    _hf("maskformer-resnet-50", "segmentation", "MaskFormerForInstanceSegmentation",
        backbone_config=_resnet(out_features=["stage1", "stage2", "stage3", "stage4"]), inputs=images(384, 64),
        tiny={"backbone_config": _resnet(out_features=["stage1", "stage2", "stage3", "stage4"], **_SMALL_RESNET)}),
    _hf("clipseg", "segmentation", "CLIPSegForImageSegmentation", tiny={"extract_layers": [0, 1],
        "vision_config": {"image_size": 64}}),
    _hf("swin2sr-x2", "segmentation", "Swin2SRForImageSuperResolution", tiny={"embed_dim": 8, "depths": [1, 1],
        "num_heads": [2, 2], "window_size": 4, "image_size": 16}),
]  # fmt: skip

AUDIO = [
    _hf("wav2vec2-xls-r-300m", "audio", "Wav2Vec2ForCTC", hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, intermediate_size=4096, feat_extract_norm="layer", do_stable_layer_norm=True,
        conv_bias=True, feat_proj_dropout=0.0, num_codevectors_per_group=320, codevector_dim=768,
        proj_codevector_dim=768, **_SPEECH, tiny=_SMALL_SPEECH),
    _hf("wav2vec2-base", "audio", "Wav2Vec2ForCTC", **_SPEECH, tiny=_SMALL_SPEECH),
    _hf("hubert-base", "audio", "HubertForCTC", **_SPEECH, tiny={"conv_dim": [8] * 7}),
    _hf("wavlm-base", "audio", "WavLMForCTC", **_SPEECH, tiny=_SMALL_SPEECH),
    _hf("whisper-small", "audio", "WhisperForConditionalGeneration", d_model=768, encoder_layers=12,
        decoder_layers=12, encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_ffn_dim=3072, vocab_size=51865),
    _hf("speech-to-text-small", "audio", "Speech2TextForConditionalGeneration", encoder_attention_heads=4,
        decoder_attention_heads=4, max_source_positions=6000, tiny={"max_source_positions": 100,
        "conv_channels": 32}),
    _hf("ast", "audio", "ASTForAudioClassification", num_labels=527, tiny={"max_length": 64, "num_mel_bins": 32}),
    _hf("moonshine-tiny", "audio", "MoonshineForConditionalGeneration"),
    _hf("parakeet-ctc-0.6b", "audio", "ParakeetForCTC", encoder_config={"layerdrop": 0.0}),
]  # fmt: skip

VISION_LANGUAGE = [
    _hf("clip-vit-b32", "vision-language", "CLIPModel", tiny={"vision_config": {"patch_size": 16}}),
    _hf("siglip-2-so400m", "vision-language", "SiglipModel", text_config={"vocab_size": 256000, "hidden_size": 1152,
        "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "max_position_embeddings": 64,
        "projection_size": 1152}, vision_config={"hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}),
    _hf("deplot", "vision-language", "Pix2StructForConditionalGeneration", is_encoder_decoder=True,
        tiny={"text_config": {"num_layers": 2, "d_ff": 64, "d_kv": 8}, "vision_config": {"d_ff": 64, "seq_len": 16,
        "patch_embed_hidden_size": 768}}),
    _hf("blip-captioning-base", "vision-language", "BlipForConditionalGeneration", vision_config={"image_size": 384}),
    _hf("blip-2-opt-2.7b", "vision-language", "Blip2ForConditionalGeneration", image_token_index=50265,
        text_config={"model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 32, "ffn_dim": 10240, "word_embed_proj_dim": 2560}, num_query_tokens=32,
        tiny={"num_query_tokens": 4, "text_config": {"word_embed_proj_dim": 32},
        "qformer_config": {"encoder_hidden_size": 32}}),
    _hf("git-base", "vision-language", "GitForCausalLM"),
    _hf("vilt-b32", "vision-language", "ViltForQuestionAnswering", num_labels=3129),
    _hf("trocr-decoder", "vision-language", "TrOCRForCausalLM"),
    _hf("llava-1.5-7b", "vision-language", "LlavaForConditionalGeneration", text_config={"model_type": "llama",
        "vocab_size": 32064}, vision_config={"model_type": "clip_vision_model", "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
        "patch_size": 14}),
    _hf("paligemma-3b", "vision-language", "PaliGemmaForConditionalGeneration", image_token_id=257152,
        text_config={"model_type": "gemma", "vocab_size": 257216, "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256},
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
        "projection_dim": 2048}),
    _hf("florence-2", "vision-language", "Florence2ForConditionalGeneration"),
    _hf("qwen2-vl-2b", "vision-language", "Qwen2VLForConditionalGeneration", text_config={"hidden_size": 1536,
        "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        vision_config={"hidden_size": 1536}, tiny={"text_config": {"rope_parameters": {"rope_type": "default",
        "rope_theta": 1e6, "mrope_section": [2, 1, 1]}}}),
]  # fmt: skip

SERIES = [
    _hf("patchtst", "time series", "PatchTSTForPrediction", num_input_channels=7, context_length=512,
        patch_length=12, patch_stride=12, tiny={"context_length": 36, "ffn_dim": 16, "num_input_channels": 2}),
    _hf("patchtsmixer", "time series", "PatchTSMixerForPrediction", num_input_channels=7, context_length=512,
        prediction_length=96, tiny={"context_length": 32, "num_input_channels": 2}),
    _hf("timesfm", "time series", "TimesFmModelForPrediction"),
]  # fmt: skip

PERCEPTION = [*CNN, *VIT, *HYBRID, *DENSE, *AUDIO, *VISION_LANGUAGE, *SERIES]
