"""Relevance for every token that a language model has written: what came before, for each, in one call."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..errors import AttributionError, InputError, check_choice, first_line
from ..graph.calls import check_module
from .attribution import attribute
from .pictures import printable, shade, shade_text

__all__ = ["Generation", "explain_generation"]

AGAINST = (None, "runner-up")
PASSED_ON = ("baseline", "condition", "fallback", "on_missing", "positions", "steps")  # to `attribute`


@dataclass
class Generation:
    """Relevance of what a model has read and written, for each token that it has written.

    Attributes:
        tokens: ids of the prompt and what was written after it [length]; of a sequence-to-sequence model of the source, and then
            of what was written, its first token among it.
        start: where, among the tokens, the first explained one is.
        relevance: [written, length]; zero for what comes later.
        explained: the explained value for each token written [written]: its logit, less the runner-up's where that is asked for.
        runner_up: the second best token at each place [written].
    """

    tokens: Tensor
    start: int
    relevance: Tensor
    explained: Tensor
    runner_up: Tensor

    def words(self, tokenizer: Any) -> list[str]:
        """The tokens as text; `tokenizer` has `convert_ids_to_tokens` or is a function of an id."""
        return _words(self.tokens.tolist(), tokenizer)

    def text(self, tokenizer: Any) -> str:
        """For a terminal: a line for each token written, what came before it in 24-bit colours."""
        words = self.words(tokenizer)
        lines = []
        for i, row in enumerate(self.relevance):
            size = float(row.abs().max()) or 1.0
            before = " ".join(shade_text(w, r / size) for w, r in zip(words[: self.start + i], row.tolist()))
            lines.append(f"{before} -> {printable(words[self.start + i])}")
        return "\n".join(lines)

    def html(self, tokenizer: Any) -> str:
        """A table of HTML: a row for each token written, a column for each token, red for what speaks for it and blue against."""
        words, others = self.words(tokenizer), _words(self.runner_up.tolist(), tokenizer)
        head = "".join(f"<th>{html.escape(word)}</th>" for word in words[:-1])
        rows = []
        for i, row in enumerate(self.relevance):
            size = float(row.abs().max()) or 1.0
            cells = []
            for value in row[: len(words) - 1].tolist():
                red, green, blue = shade(value / size)
                cells.append(f'<td style="background:rgb({red},{green},{blue})" title="{value:.4g}"></td>')
            title = f"{float(self.explained[i]):.4g}; next best: {others[i]}"
            rows.append(
                f'<tr><th title="{html.escape(title)}">{html.escape(words[self.start + i])}</th>{"".join(cells)}</tr>'
            )
        return f'<table class="generation"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def explain_generation(
    model: nn.Module,
    inputs: Any,
    written: Tensor | None = None,
    composite: str | Composite | None = None,
    *,
    against: str | None = None,
    batch: int = 8,
    generate: Mapping[str, Any] | None = None,
    **how: Any,
) -> Generation:
    """Relevance of all tokens before it, for each token that a causal or sequence-to-sequence model writes.

    The model writes with its caches as ever; the explanation runs whole texts without a cache, a batch of places at a time, by
    one program. A place sees no later token, so that is what step by step would give.

    Args:
        model: of transformers, or one that takes `input_ids` (and `decoder_input_ids`) by name and returns logits [n, length,
            words], alone or as `.logits`.
        inputs: token ids [1, length] of one prompt, or a dict of arguments with `input_ids`.
        written: ids that were written [count] or [1, count]; None lets the model write (`model.generate`).
        composite: as for `attribute`.
        against: None explains each token's logit, "runner-up" its logit less that of the best other token there.
        batch: how many written tokens are explained at once.
        generate: arguments of `model.generate`, such as `{"max_new_tokens": 20}`; it takes the best token by default.
        how: further arguments of `attribute`: baseline, steps, positions, condition, on_missing, fallback.

    Raises:
        AttributionError: several prompts, nothing written, or an argument that does not fit. InputError: the model does not run
            on the whole text. Those of `attribute`.
    """
    check_module(model, "explain_generation", AttributionError)
    check_choice("against", against, AGAINST, AttributionError)
    unknown = [name for name in how if name not in PASSED_ON]
    if unknown:
        raise AttributionError(f"explain_generation has no {', '.join(unknown)}; it hands on {', '.join(PASSED_ON)}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise AttributionError(f"batch must be a whole number and at least 1, not {batch!r}")
    call: dict[str, Any] = {}
    if isinstance(inputs, Tensor | Mapping):
        call = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    prompt = call.get("input_ids")
    if not isinstance(prompt, Tensor) or prompt.dim() != 2 or len(prompt) != 1 or prompt.is_floating_point():
        raise AttributionError("explain_generation takes the token ids of one prompt, [1, length], as input_ids")
    config = getattr(model, "config", None)
    parts = bool(getattr(config, "is_encoder_decoder", False))
    known = torch.tensor([[config.decoder_start_token_id]], device=prompt.device) if parts else prompt  # type: ignore[union-attr]
    ids = _generated(model, call, known.shape[1], generate or {}) if written is None else _one_text(written)
    if ids.numel() == 0:
        raise AttributionError("nothing was written, so there is no token to explain")
    whole = torch.cat([known, ids.to(prompt)], 1)
    call |= {"decoder_input_ids" if parts else "input_ids": whole}
    if not parts and isinstance(call.get("attention_mask"), Tensor):
        call["attention_mask"] = nn.functional.pad(call["attention_mask"], (0, ids.shape[1]), value=1)
    if hasattr(config, "use_cache"):
        call["use_cache"] = False
    places = torch.arange(known.shape[1], whole.shape[1], device=prompt.device)
    with torch.no_grad():
        try:
            found = model(**call)
        except Exception as error:  # of the model's own, of tokens that it does not know, say
            raise InputError(
                f"{type(model).__name__} itself does not run on the text of {whole.shape[1]} tokens: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        logits = _logits(found)[0, places - 1].clone()
    chosen = whole[0, places]
    runner_up = logits.scatter(1, chosen[:, None], -torch.inf).argmax(1)
    relevance: list[Tensor] = []
    explained: list[Tensor] = []
    for part in torch.arange(len(places), device=prompt.device).split(batch):
        rows = torch.arange(len(part), device=prompt.device)

        def target(out: Any, part: Tensor = part, rows: Tensor = rows) -> Tensor:
            found = _logits(out)[rows, places[part] - 1]
            own = found.gather(1, chosen[part, None])
            return own - found.gather(1, runner_up[part, None]) if against else own

        given = {k: v.expand(len(part), *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in call.items()}
        answer = attribute(model, given, target, composite, details=True, **how)
        names = ("input_ids", "decoder_input_ids") if parts else ("input_ids",)
        relevance.append(torch.cat([answer.inputs[name] for name in names], 1))
        explained.append(answer.explained)
    tokens = torch.cat([prompt, whole], 1)[0] if parts else whole[0]
    return Generation(tokens, len(tokens) - len(places), torch.cat(relevance), torch.cat(explained), runner_up)


def _logits(out: Any) -> Tensor:
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(found, Tensor) or found.dim() != 3:
        what = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(out).__name__
        raise AttributionError(f"the model must return logits [n, length, words], alone or as .logits, not {what}")
    return found


def _one_text(written: Any) -> Tensor:
    """The ids that were written, as [1, count]."""
    ids = torch.as_tensor(written) if isinstance(written, list | tuple) else written
    ids = ids.long() if isinstance(ids, Tensor) and ids.numel() == 0 else ids  # torch's type for nothing is float
    whole = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole or ids.dim() not in (1, 2) or (ids.dim() == 2 and len(ids) != 1):
        what = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(written).__name__
        raise AttributionError(f"written must be the token ids of one text, [count] or [1, count], not {what}")
    return ids.reshape(1, -1)


def _generated(model: Any, call: dict[str, Any], known: int, options: Mapping[str, Any]) -> Tensor:
    """What the model writes for a prompt, [1, count]; the best token each time, unless the options say otherwise.

    Args:
        known: how many of the tokens that `generate` returns were there before.
    """
    if not hasattr(model, "generate"):
        raise AttributionError(
            f"{type(model).__name__} has no generate(); give the tokens that were written as written="
        )
    try:
        with torch.no_grad():
            found = model.generate(**call, **{"do_sample": False, "num_beams": 1, **options})
    except Exception as error:  # of whatever the caller's options make
        raise AttributionError(f"model.generate fails: {type(error).__name__}: {first_line(error)}") from error
    return (found if isinstance(found, Tensor) else found.sequences)[:1, known:]


def _words(ids: Sequence[int], tokenizer: Any) -> list[str]:
    if not hasattr(tokenizer, "convert_ids_to_tokens") and not callable(tokenizer):
        raise AttributionError(f"a tokenizer, or a function of an id, is needed, not {type(tokenizer).__name__}")
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return [str(word) for word in tokenizer.convert_ids_to_tokens(list(ids))]
    return [str(tokenizer(i)) for i in ids]
