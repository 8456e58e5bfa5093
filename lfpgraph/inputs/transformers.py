"""Example inputs for a transformers model, from the arguments of its forward and its configuration.

No model has a branch of its own here: an argument's name says what tensor it is (`arguments`), the configuration's fields
say how large. Where several tensors fit a name, the candidates are run without gradients and the first that runs is taken.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..modes import eval_mode
from ..randomness import keep_random_state
from ..threads.silence import quiet
from .arguments import MAKERS, Sizes
from .config import ConfigView
from .maker import TensorMaker

__all__ = ["transformers_inputs"]

Arguments = dict[str, Any]
_MAX_CANDIDATES = 40
_LARGE = 100_000_000
# Arguments that go with another one wherever forward takes them: input_ids bring their mask, patches their grid.
_COMPANIONS = {
    "input_ids": ("attention_mask", "decoder_input_ids", "bbox", "visual_feats", "visual_pos", "visual_embeds"),
    "pixel_values": ("decoder_input_ids", "image_grid_thw", "grid_thw", "spatial_shapes", "image_sizes"),
    "input_features": ("decoder_input_ids",),
    "input_values": ("decoder_input_ids",),
    "flattened_patches": ("decoder_input_ids",),
    "spatial_shapes": ("pixel_attention_mask",),
    "states": ("actions", "rewards", "returns_to_go", "timesteps", "attention_mask"),
    "past_values": ("past_time_features", "past_observed_mask", "future_values", "future_time_features"),
}
# Companions that some models use for something else; calls without them are tried, too.
_DOUBTFUL = ("image_sizes",)
_MEDIA = ("pixel_values", "input_features", "input_values", "flattened_patches")
# The token that stands in a text for a picture or a sound, and the method that makes rows of features of it.
_PLACEHOLDERS = {
    "pixel_values": (
        ("image_token_id", "image_token_index", "media_placeholder_token_id", "image_pad_token_id"),
        "get_image_features",
    ),
    "input_features": (("audio_token_id", "audio_token_index", "speech_token_index"), "get_audio_features"),
}


def transformers_inputs(model: nn.Module, make: TensorMaker, batch: int, length: int) -> Arguments:
    """Keyword inputs for a PreTrainedModel.

    Raises:
        InputError: an argument it needs is not known, or nothing tried runs.
    """
    parameters = _forward_parameters(model)
    names = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    required = [name for name in names if parameters[name].default is inspect.Parameter.empty]
    unknown = [name for name in required if name not in MAKERS]
    if unknown:
        raise InputError(
            f"{type(model).__name__}.forward needs {', '.join(unknown)}, which cannot be worked out; pass args and kwargs "
            "by hand"
        )
    view = ConfigView(model.config)
    sizes = Sizes(view, make, names, batch, length)
    fixed = {"use_cache": False} if "use_cache" in names else {}
    candidates = _candidates(model, sizes, names, required)
    refused: list[str] = []
    for candidate in itertools.islice(candidates, _MAX_CANDIDATES):
        found = {**candidate, **fixed}
        answer = _try(model, model, found)
        if isinstance(answer, Exception) and not isinstance(answer, _Unclear):
            refused.append(f"{', '.join(candidate)}: {_named(answer)}")
        else:
            return found
    tried = f"; tried {refused[0]}" if refused else ""
    raise InputError(
        f"no inputs found that {type(model).__name__} runs on{tried}. Its forward takes {', '.join(names[:12])}; pass args "
        "and kwargs by hand"
    )


def _forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    forward = model.forward
    return inspect.signature(getattr(forward, "original", forward)).parameters


def _candidates(model: nn.Module, sizes: Sizes, names: list[str], required: list[str]) -> Iterator[Arguments]:
    """Sets of arguments to try, likeliest first."""
    main = getattr(model, "main_input_name", None)
    mains = [n for n in ([main] if isinstance(main, str) else list(main or [])) if n in names and n in MAKERS]
    media = [name for name in _MEDIA if name in names]
    text = ["input_ids"] if "input_ids" in names else []
    starts: list[list[str]] = []
    if text and media:
        starts += [[*text, medium] for medium in media]
    starts += [mains, *[[name] for name in (*text, *media)], []]
    starts += [[name] for name in ("inputs_embeds", "hidden_states", "past_values") if name in names]
    seen: set[tuple[str, ...]] = set()
    for start in starts:
        plain = list(dict.fromkeys([*required, *start]))
        full = _with_companions(plain, names)
        for keys in (full, [key for key in full if key not in _DOUBTFUL], plain):
            if not keys or tuple(sorted(keys)) in seen:
                continue
            seen.add(tuple(sorted(keys)))
            for values in itertools.product(*(MAKERS[key](sizes) for key in keys)):
                candidate = dict(zip(keys, values))
                yield from _with_placeholders(model, sizes, candidate, names)
                yield candidate


def _with_companions(keys: list[str], names: list[str]) -> list[str]:
    found = list(keys)
    for key in found:
        found += [name for name in _COMPANIONS.get(key, ()) if name in names and name not in found]
    return found


def _with_placeholders(model: nn.Module, sizes: Sizes, candidate: Arguments, names: list[str]) -> Iterator[Arguments]:
    """The candidate with as many placeholder tokens in its text as its picture or sound has features."""
    for medium, (spellings, method) in _PLACEHOLDERS.items():
        token = sizes.view.number(*spellings, default=-1, least=0)
        if token < 0 or medium not in candidate or "input_ids" not in candidate:
            continue
        for masked in _feature_masks(sizes, candidate, medium, names):
            count = _feature_rows(model, masked, method, sizes)
            if not count or count % sizes.batch:
                continue
            rows = count // sizes.batch
            ids = sizes.ids(length=rows + 8)
            ids[:, 2 : 2 + rows] = token
            placed = {**masked, "input_ids": ids}
            if "attention_mask" in placed:
                placed["attention_mask"] = torch.ones_like(ids)
            kind = next((name for name in ("mm_token_type_ids", "token_type_ids") if name in names), None)
            yield {**placed, kind: (ids == token).long()} if kind else placed


def _feature_masks(sizes: Sizes, candidate: Arguments, medium: str, names: list[str]) -> list[Arguments]:
    """The candidate, with a mask over the frames of its sound where forward takes one."""
    name = next((n for n in ("input_features_mask", "feature_attention_mask") if n in names), None)
    if medium != "input_features" or name is None:
        return [candidate]
    shape = candidate[medium].shape
    return [{**candidate, name: sizes.make.full(1, shape[0], shape[axis])} for axis in (-1, 1)]


def _feature_rows(model: nn.Module, candidate: Arguments, method: str, sizes: Sizes) -> int:
    """How many features a picture or a sound becomes; 0 if that cannot be told."""
    if "image_grid_thw" in candidate and method == "get_image_features":
        return sizes.grid_patches() // sizes.merge**2
    owners = [model, getattr(model, "model", None), getattr(model, "base_model", None)]
    function = next((getattr(owner, method) for owner in owners if hasattr(owner, method)), None)
    if function is None:
        return 0
    taken = inspect.signature(function).parameters
    answer = _try(model, function, {k: v for k, v in candidate.items() if k in taken and k != "input_ids"})
    for attribute in ("pooler_output", "last_hidden_state"):
        answer = getattr(answer, attribute, None) if getattr(answer, attribute, None) is not None else answer
        if isinstance(answer, Tensor | list | tuple):
            break
    return _count_rows(answer)


def _count_rows(value: Any) -> int:
    if isinstance(value, Tensor):
        return math.prod(value.shape[:-1])
    return sum(_count_rows(item) for item in value) if isinstance(value, list | tuple) else 0


_VALUES_WANTED = ("meta tensor", "datadependent", "data-dependent", "dynamicoutput", "unbacked", "concrete integers")


class _Unclear(Exception):
    """The call asked for a tensor's value, which meta and fake tensors do not have."""


def _try(model: nn.Module, function: Callable[..., Any], kwargs: Arguments) -> Any:
    """What the call returns or raises, in eval mode without gradients; large models and meta ones only in shapes."""
    mode = _shapes_only(model)
    try:
        with (
            eval_mode(model),
            keep_random_state(model, kwargs),
            quiet(),
            torch.no_grad(),
            mode or contextlib.nullcontext(),
        ):
            if mode is not None:
                kwargs = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
            return function(**kwargs)
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        if any(word in text for word in _VALUES_WANTED):
            return _Unclear(str(error))
        return error


def _shapes_only(model: nn.Module) -> Any:
    """A fake tensor mode, for models on meta and for those too large to run for a try; None for others, and for fake ones."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    tensors = [*model.parameters(), *model.buffers()]
    fake = any(hasattr(t, "fake_mode") for t in tensors)
    meta = any(t.device.type == "meta" for t in tensors)
    if fake or not (meta or sum(t.numel() for t in tensors) > _LARGE):
        return None
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]
