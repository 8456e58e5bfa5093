"""Which tensors an argument of a transformers forward may want, by its name.

The name and the configuration do not always settle a shape. So the maker of a name returns alternatives, likeliest
first, and `transformers` picks those that run together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from .config import ConfigView
from .maker import TensorMaker

__all__ = ["MAKERS", "Sizes"]

_SEEN = ("vision", "image", "vit", "backbone", "visual")
_HEARD = ("audio", "encoder", "speech")
_WRITTEN = ("text", "decoder", "language", "llm")


class Sizes:
    """The sizes every maker works with."""

    def __init__(self, view: ConfigView, make: TensorMaker, names: Collection[str], batch: int, length: int) -> None:
        self.view, self.make, self.names = view, make, names
        self.batch, self.length = batch, length
        self.width = view.number("hidden_size", "d_model", "embed_dim", "hidden_dim", "dim", default=64)
        self.vocabulary = view.number("vocab_size", "src_vocab_size", near=_WRITTEN, default=100, least=2)
        self.channels = view.number("num_channels", "in_channels", "in_chans", near=_SEEN, default=3)
        if self.channels > 4:
            self.channels = 3
        self.patch = view.sides("patch_size", near=_SEEN, default=16)[0]
        names_of_size = ("image_size", "img_size", "input_size", "pretrain_image_size", "resolution")
        self.height, self.wide = view.sides(*names_of_size, near=_SEEN, default=224, least=8)
        self.merge = view.number("spatial_merge_size", "merge_size", "merge_kernel_size", near=_SEEN, default=1)
        self.frames = view.number("num_frames", near=_SEEN, default=4)
        self.steps = view.number("temporal_patch_size", near=_SEEN, default=1)
        bins = ("num_mel_bins", "n_mels", "n_mel_bins", "num_mels", "mel_dim", "input_feat_per_channel")
        self.mel = view.number(*bins, "feature_size", "feature_projection_input_dim", near=_HEARD, default=80)

    def ids(self, batch: int | None = None, length: int | None = None) -> Tensor:
        """Ordinary token ids [batch, length]; the last is the end of text, where there is such a token."""
        batch, length = batch or self.batch, length or self.length
        special = self.view.special_ids()
        top = min(self.vocabulary, 30_000)
        low = next((v for v in range(max(0, top // 2), top) if v not in special), 0)
        high = next((v for v in range(low + 1, top) if v in special), top)
        ids = self.make.integers(low, high, batch, length)
        end = self.view.number("eos_token_id", near=_WRITTEN, default=-1, least=0)
        if 0 <= end < self.vocabulary and length > 1:
            ids[:, -1] = end
        return ids

    def grid(self) -> Tensor:
        """One picture of a few patches for each example: [n, (time, height, width)]."""
        side = max(4, 2 * self.merge)
        return self.make.constant([[1, side, side]] * self.batch)

    def grid_patches(self) -> int:
        """How many patches `grid` has in all."""
        return self.batch * max(4, 2 * self.merge) ** 2


def _images(s: Sizes) -> list[Tensor]:
    n, c, h, w, make = s.batch, s.channels, s.height, s.wide, s.make
    patch = c * s.patch * s.patch
    rows = s.view.number("num_patches", "max_num_patches", default=(h // s.patch) * (w // s.patch) or 1)
    image = make.floats(n, c, h, w)
    video = make.floats(n, s.frames, c, h, w)
    if {"image_grid_thw", "grid_thw"} & set(s.names):
        flat = [make.floats(s.grid_patches(), patch * s.steps), make.floats(s.grid_patches(), c, s.patch, s.patch)]
        # Two frames are the rule for a picture where the configuration does not say how many a patch has.
        return [*flat, make.floats(s.grid_patches(), patch), make.floats(s.grid_patches(), 2 * patch), image]
    if "spatial_shapes" in s.names:
        return [make.floats(n, rows, patch)]
    framed = s.view.number("num_frames", default=0) > 1
    tiles = s.view.number("max_image_tiles", "max_num_tiles", default=5)
    others = [make.floats(n, count, c, h, w) for count in dict.fromkeys((1, 2, tiles))]
    others += [make.floats(n, rows, patch), make.floats(n, c, 224, 224), make.floats(n, c, h // 2, 2 * w)]
    return ([video, image] if framed else [image, video]) + others


def _flattened_patches(s: Sizes) -> list[Tensor]:
    rows = s.view.number("seq_len", near=_SEEN, default=16)
    rows = min(rows, 4 * s.length)
    place = s.make.integers(1, 8, s.batch, rows, 2).to(s.make.dtype)
    return [torch.cat([place, s.make.floats(s.batch, rows, s.channels * s.patch * s.patch)], -1)]


def _features(s: Sizes) -> list[Tensor]:
    positions = s.view.number("max_source_positions", near=_HEARD, default=0)
    strided, found = 8 * s.length, []
    if positions:
        found.append(s.make.floats(s.batch, s.mel, 2 * positions))
    for mel in dict.fromkeys((s.mel, 2 * s.mel, 128, 80)):
        found += [s.make.floats(s.batch, strided, mel), s.make.floats(s.batch, mel, strided)]
    spectrogram = s.view.number("spec_size", default=0)
    return found + ([s.make.floats(s.batch, 1, 4 * spectrogram, s.mel)] if spectrogram else [])


def _sound(s: Sizes) -> list[Tensor]:
    """A waveform; or a spectrogram, for models that call one `input_values`."""
    strides = s.view.find("conv_stride", "upsampling_ratios", "downsampling_ratios", fits=_all_numbers) or [20, 16]
    samples = s.length * math.prod(strides) + 80
    wave = [s.make.floats(s.batch, samples), s.make.floats(s.batch, 1, s.length * math.prod(strides))]
    frames = s.view.number("max_length", default=0)
    table = [s.make.floats(s.batch, frames, s.mel)] if frames and s.view.number("num_mel_bins") else []
    return table + wave + [s.make.floats(s.batch, 8 * s.length, s.mel)]


def _all_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, int) for v in value)


def _codes(s: Sizes) -> list[Tensor]:
    books = s.view.number("num_codebooks", "num_quantizers", "n_codebooks", default=8)
    top = s.view.number("codebook_size", "audio_vocab_size", default=s.vocabulary, least=2)
    return [s.make.integers(0, min(top, s.vocabulary), s.batch, books, s.length)]


def _series(s: Sizes) -> tuple[int, list[int]]:
    """How many past steps a forecaster wants, lags included, and the size of its axis of variables, if it has one."""
    context = s.view.number("context_length", "prediction_length", default=32)
    lags = s.view.find("lags_sequence", fits=_all_numbers) or [0]
    channels = s.view.number("num_input_channels", "input_size", default=1)
    alone = channels == 1 and not s.view.number("num_input_channels")
    return context + max(lags), [] if alone else [channels]


def _past(s: Sizes) -> list[Tensor]:
    steps, channels = _series(s)
    return [s.make.floats(s.batch, steps, *channels), s.make.floats(s.batch, 512)]


def _time_features(s: Sizes, steps: int) -> list[Tensor]:
    return [s.make.floats(s.batch, steps, max(1, s.view.number("num_time_features")))]


def _future(s: Sizes) -> int:
    return s.view.number("prediction_length", "context_length", default=24)


def _hidden(s: Sizes) -> list[Tensor]:
    if "grid_thw" in s.names:
        patch = s.channels * s.patch * s.patch
        rows = s.grid_patches()
        return [s.make.floats(rows, patch * s.steps), s.make.floats(rows, s.channels, s.patch, s.patch)]
    states = s.make.floats(s.batch, s.length, s.width)
    return [states, s.make.floats(s.batch, s.channels, 64, 64), s.make.floats(s.batch, s.length, s.mel)]


def _other_width(s: Sizes) -> list[Tensor]:
    width = s.view.number("encoder_hidden_size", "cross_hidden_size", default=s.width)
    return [s.make.floats(s.batch, s.length, width)]


def _rows(*sizes: str, default: int) -> Callable[[Sizes], list[Tensor]]:
    """A maker of [n, length, the first of these sizes]."""
    return lambda s: [s.make.floats(s.batch, s.length, s.view.number(*sizes, default=default))]


def _shapes(s: Sizes) -> list[Tensor]:
    rows = s.view.number("num_patches", "max_num_patches", default=(s.height // s.patch) * (s.wide // s.patch) or 1)
    side = math.isqrt(rows)
    return [s.make.constant([[side, rows // side]] * s.batch)]


MAKERS: dict[str, Callable[[Sizes], list[Tensor]]] = {
    "input_ids": lambda s: [s.ids()],
    "decoder_input_ids": lambda s: [s.ids()],
    "text_token": lambda s: [s.ids()],
    "qformer_input_ids": lambda s: [s.ids()],
    "cond_input_ids": lambda s: [s.ids()],
    "task_inputs": lambda s: [s.ids(length=s.view.number("task_seq_len", default=77))],
    "attention_mask": lambda s: [s.make.full(1, s.batch, s.length)],
    "decoder_attention_mask": lambda s: [s.make.full(1, s.batch, s.length)],
    "bbox": lambda s: [s.make.constant([[[1, 2, 5, 7]] * s.length] * s.batch)],
    "position_ids": lambda s: [s.make.constant([list(range(s.length))] * s.batch)],
    "pixel_values": _images,
    "pixel_values_videos": lambda s: [s.make.floats(s.batch, s.frames, s.channels, s.height, s.wide)],
    "prompt_pixel_values": lambda s: [s.make.floats(s.batch, s.channels, s.height, s.wide)],
    "prompt_masks": lambda s: [s.make.floats(s.batch, s.channels, s.height, s.wide)],
    "prompt_depth": lambda s: [s.make.uniform(s.batch, 1, 8, 8)],
    "image": lambda s: [s.make.floats(s.batch, s.channels, s.height, s.wide)],
    "flattened_patches": _flattened_patches,
    "image_grid_thw": lambda s: [s.grid()],
    "grid_thw": lambda s: [s.grid()],
    "image_sizes": lambda s: [s.make.constant([[s.height, s.wide]] * s.batch)],
    "spatial_shapes": _shapes,
    "pixel_attention_mask": lambda s: [s.make.full(1, s.batch, int(_images(s)[0].shape[1]))],
    "aspect_ratio_ids": lambda s: [s.make.full(1, s.batch, 1)],
    "input_features": _features,
    "input_values": _sound,
    "audio_values": _sound,
    "audio_codes": _codes,
    "spectrogram": lambda s: [s.make.floats(s.batch, s.length, s.mel)],
    "inputs_embeds": lambda s: [s.make.floats(s.batch, s.length, s.width)],
    "hidden_states": _hidden,
    "encoder_hidden_states": _other_width,
    "query_embeds": _other_width,
    "visual_feats": _rows("visual_feat_dim", default=2048),
    "visual_pos": _rows("visual_pos_dim", default=4),
    "visual_embeds": _rows("visual_embedding_dim", default=512),
    "states": _rows("state_dim", default=17),
    "actions": _rows("act_dim", default=4),
    "rewards": lambda s: [s.make.floats(s.batch, s.length, 1)],
    "returns_to_go": lambda s: [s.make.floats(s.batch, s.length, 1)],
    "timesteps": lambda s: [s.make.constant([list(range(s.length))] * s.batch)],
    "past_values": _past,
    "past_time_features": lambda s: _time_features(s, _series(s)[0]),
    "past_observed_mask": lambda s: [s.make.full(1, s.batch, _series(s)[0], *_series(s)[1], dtype=s.make.dtype)],
    "future_values": lambda s: [s.make.floats(s.batch, _future(s), *_series(s)[1])],
    "future_time_features": lambda s: _time_features(s, _future(s)),
    "state": lambda s: [s.make.floats(s.batch, s.view.number("max_state_dim", "state_dim", default=32))],
    "latents": _other_width,
    "mask": lambda s: [s.make.full(1, s.batch, s.length, dtype=torch.bool)],
    "input_points": lambda s: [32 * s.make.uniform(s.batch, 1, 2, 2)],
}
