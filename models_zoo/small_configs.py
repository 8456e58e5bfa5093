"""A small configuration of the same kind as a published one, by the names of its fields, whatever the model.

Sizes are capped. What the configuration works out by itself (fields without a default) is worked out again.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import Any

__all__ = ["shrink"]

_SMALL_VOCABULARY = 128
_TOKEN = re.compile(r"token_(id|index)$")
# The first pattern found in a field's name caps its value; None keeps it.
_CAPS: tuple[tuple[str, int | None], ...] = (
    (r"type_vocab|num_labels|num_channels$|num_buckets|chunk_size_feed|norm_num|num_groups$|stem_", None),
    (r"^(conv_dim|conv_stride|conv_kernel|n_groups|mamba_n_groups|num_codevector)", None),
    (r"position_offset", None),
    (r"vocab|codebook_size", _SMALL_VOCABULARY),
    (r"(experts_per_tok|num_selected_experts|experts_per_token|top_?k)", 2),
    (r"num_.*experts$|n_routed_experts", 4),
    (r"(kv_heads|key_value_heads|kv_n_heads|linear_num_key_heads|query_groups)", 2),
    (r"(_heads|n_head|num_head|nhead)$", 4),
    (r"(^|_)(n_layers?|num_layers|layers|depth|num_blocks|num_hidden_groups)$|num_.*_layers$", 2),
    (r"(max_position|n_positions|max_seq|n_ctx|context_length|max_target|max_relative|seq_length)", 128),
    (r"max_source_positions", 24),
    (r"queries|num_proposals", 10),
    (r"(image_size|img_size)$", 64),
    (r"max_length$", 128),
    (r"num_frames", 4),
    (r"num_patches", 16),
    (r"sliding_window|attention_window|local_attention|window_size$", 8),
    (r"(mamba|^)_?chunk_size|chunk_length", 8),
    (r"conv_pos_embeddings$", 16),
    (r"conv_pos_embedding_groups", 4),
    (r"(head_dim|d_kv|head_size|d_head|key_dim|value_dim)$", 16),
    (r"rank$", 16),
    (r"(state_size|d_state|ssm_state)", 8),
    (r"intermediate|ffn|mlp_dim|d_ff|n_inner|inner_dim|feed_?forward|linear_units", 64),
    (r"(hidden|embed|d_model|n_embd|_dim$|^dim$|width|_channels$|project|classifier_proj_size|lru_)", 32),
)
# Worked out from other fields. (A backbone keeps the names of its outputs in `_out_features`, and takes `out_features`.)
_LEFT_OUT = ("model_type", "_out_indices", "stage_names")
# Fields of counts of blocks at each stage, and of widths at each stage.
_DEPTHS = re.compile(r"depths|layer_depth|num_block_repeats")
_KEPT_LISTS = re.compile(r"kernel|stride|padding|ratio|patch|[a-z]_size$|img|indices|features|levels|conv_dim|head_dim")


def shrink(config: Any, given: Mapping[str, Any], tiny: Mapping[str, Any]) -> Any:
    """A small configuration.

    Args:
        config: the published one.
        given: the fields it was made with; other fields without a default of their own are derived again.
        tiny: values of the small one that are not to be worked out; a dict for a part goes into that part.
    """
    kind = type(config)
    base = {f.name for f in dataclasses.fields(next(c for c in kind.__mro__ if c.__name__ == "PreTrainedConfig"))}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = vars(config).get(field.name)
        if field.name in base and field.name not in given or value is None or field.name in _LEFT_OUT:
            continue
        if hasattr(value, "model_type"):
            part = tiny.get(field.name, {})
            values[field.name] = part if not isinstance(part, Mapping) else _part(value, given.get(field.name), part)
        elif field.name == "_out_features":
            if len(value) > 1:  # a single one is the last stage, which the small one finds itself
                values["out_features"] = list(value)
        elif field.default is None and field.name not in given:
            continue
        else:
            values[field.name] = _smaller(field.name, value)
    values.update({n: _smaller(n, v) for n, v in given.items() if n not in values and not isinstance(v, Mapping)})
    values.update({name: value for name, value in tiny.items() if not hasattr(vars(config).get(name), "model_type")})
    return kind(**values)


def _part(config: Any, given: Any, tiny: Mapping[str, Any]) -> Any:
    named = given if isinstance(given, Mapping) else vars(given) if given is not None else {}
    return shrink(config, named, tiny)


def _smaller(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return copy.deepcopy(value)
    if isinstance(value, int):
        if _TOKEN.search(name):
            # An id beyond the small vocabulary becomes another one, the same for a name wherever the name stands.
            return value if value < _SMALL_VOCABULARY // 2 else 64 + zlib.crc32(name.encode()) % 61
        cap = next((cap for pattern, cap in _CAPS if re.search(pattern, name)), None)
        return value if cap is None else min(value, cap)
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return copy.deepcopy(value)
    if _DEPTHS.search(name):
        return [min(v, 1) for v in value]
    if _KEPT_LISTS.search(name):
        return list(value)
    return [v if v <= 4 else max(4, v // 8 // 4 * 4) for v in value]
