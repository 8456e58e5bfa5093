"""`lfpgraph explain`: explanations of one input or several, as a self-contained HTML page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ..errors import AttributionError, TargetError, first_line, one_line
from ..inputs.files import array_of, image_of
from ..writing import write_text
from .functions import own_code
from .reports import STDOUT, JsonFile, finite, give_json, writable
from .transformers import config_file, transformers_library

__all__ = ["explain"]

FACTS = ("model", "input", "target", "rules", "explained value", "relevance at the input", "predicted class")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
# How arrays are drawn, and what their dimensions are, but for channels.
SHAPES = {
    "image": ("batch", "height", "width"),
    "spectrogram": ("batch", "time", "frequencies"),
    "series": ("batch", "length"),
}


def explain(
    model: Annotated[str, typer.Argument(help="module:function that returns an nn.Module, or a transformers folder.")],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", help="An image file, a .npy array of a batch of one, or a text; given several times, all."
        ),
    ],
    target: Annotated[
        str, typer.Option(help='A class, "position,token", "a:b" (one against another) or "predicted".')
    ] = "predicted",
    composite: Annotated[
        str | None, typer.Option(help="Which rules to use; by default deeplift for numbers, cp-lrp for a text.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, max=2**14, help="Side to which an image is scaled.")] = None,
    mean: Annotated[float, typer.Option(callback=finite, help="Subtracted from pixels between 0 and 1.")] = 0.0,
    std: Annotated[float, typer.Option(min=1e-9, callback=finite, help="Divides pixels after that.")] = 1.0,
    channels: Annotated[int, typer.Option(min=1, max=3, help="Channels of an image: 1 or 3.")] = 3,
    show: Annotated[
        str | None, typer.Option(help="How to draw an array: image, spectrogram or series; else by its dimensions.")
    ] = None,
    flow: Annotated[bool, typer.Option(help="Add a drawing of the flow of relevance between modules.")] = False,
    checked: Annotated[
        bool, typer.Option("--check/--no-check", help="Also see what happens without what mattered.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Where to write the HTML report.")] = Path("explanation.html"),
    json_file: JsonFile = None,
) -> None:
    """Explain what a model makes of images, texts or arrays, all on one page."""
    from ..explain import pictures
    from ..reports import explanation as sheet

    if channels == 2:
        raise AttributionError("--channels 2: an image has 1 channel or 3; give an array (.npy) of the two")
    writable(out, json_file)
    network, tokenizer = _model(model)
    asked = _Asked(
        model, network.eval(), tokenizer, target, composite, show, flow, checked, (size, mean, std, channels)
    )
    parts: list[str] = []
    figures = []
    for text in inputs:
        if len(inputs) > 1:
            parts.append(f"<h2>{html.escape(text[:80])}</h2>")
        more, figure = _explained(asked, text)
        parts += more
        figures.append(figure)
    facts = [{name: figure[name] for name in FACTS} for figure in figures]
    title = f"Explanation: {inputs[0][:80]}" if len(inputs) == 1 else f"Explanations of {len(inputs)} inputs"
    write_text(out, sheet.page(title, parts, facts))
    give_json(json_file, lambda: figures[0] if len(figures) == 1 else figures)
    if json_file == STDOUT:
        return
    for figure in figures:
        if figure["tokens"] is not None:
            typer.echo(pictures.tokens_text(figure["tokens"], torch.tensor(figure["relevance"])))
        of = f"{figure['input'][:80]}: " if len(figures) > 1 else ""
        typer.echo(f"{of}explained {figure['explained value']}, at the input {figure['relevance at the input']}")
    typer.echo(f"report: {out}")


@dataclass
class _Asked:
    """What is asked of each input; the fields are those of the command line, with the model as it was loaded."""

    model: str
    network: nn.Module
    tokenizer: Any
    target: str
    composite: str | None
    show: str | None
    flow: bool
    checked: bool
    pixels: tuple[int | None, float, float, int]  # size, mean, std, channels


def _explained(asked: _Asked, text: str) -> tuple[list[str], dict[str, Any]]:
    """The parts of a page about one input, and its figures: `FACTS` and what the page draws."""
    from ..explain import pictures
    from ..explain.attribution import attribute
    from ..reports import explanation as sheet

    wanted = _target(asked.target)
    inputs, tokens = _inputs(text, asked.tokenizer, *asked.pixels)
    kind = "text" if tokens is not None else _kind(asked.show, inputs)
    with own_code(f"explaining {asked.model!r}"):
        found = attribute(asked.network, inputs, wanted, asked.composite, details=True)
    relevance = found.inputs["input_ids"] if isinstance(found.inputs, dict) else found.inputs
    if not relevance.isfinite().all() or (tokens is None and not inputs.isfinite().all()):
        raise AttributionError(
            f"{text} or its relevance holds NaN or infinity, of which there is no picture; replace them first"
        )
    facts = (
        asked.model, text, asked.target, found.composite, f"{float(found.explained.sum()):.5g}",
        f"{float(relevance.sum()):.5g}", str(int(found.output[0].flatten().argmax())),
    )  # fmt: skip
    noted = sheet.places(relevance[0], kind, tokens)
    curves, replaced = None, "Not checked."
    if asked.checked:
        value = sheet.explained_as(wanted, found.output)
        with own_code(f"running {asked.model!r} on a part of its input"):
            curves, replaced = _curves(lambda x: value(asked.network, x), inputs, relevance, kind, asked.tokenizer)
    if tokens is not None:
        drawn = pictures.tokens_html(tokens, relevance[0])
    else:
        drawn = f'<div class="figure">{pictures.figure_html(_drawn(kind, relevance, inputs, noted))}</div>'
    parts = [sheet.section(drawn, noted, curves, replaced)]
    if asked.flow:
        parts.append(_flow(asked, inputs, wanted, found.composite))
    lines = {} if curves is None else {"most": curves.morf[0].tolist(), "least": curves.lerf[0].tolist()}
    figures = {"tokens": tokens, "relevance": relevance[0].tolist(), "places": noted, "curves": lines}
    return parts, {**dict(zip(FACTS, facts)), **figures}


def _flow(asked: _Asked, inputs: Any, wanted: Any, rules: str) -> str:
    """The drawing of the flow between modules, as HTML; two runs that are compared have no flow."""
    from ..audits.flow import relevance_flow
    from ..composites.composite import get_composite
    from ..explain import pictures

    rules = "attnlrp" if get_composite(rules).compares else rules
    drawing = pictures.flow_drawing(relevance_flow(asked.network, inputs, wanted, rules))
    title = f"Flow of relevance by {html.escape(rules)}"
    return f'<h2>{title}</h2><div class="figure">{pictures.figure_html(drawing)}</div>'


def _kind(show: str | None, inputs: Tensor) -> str:
    """How an array is drawn: as it was asked for, else by its dimensions."""
    if show not in (None, *SHAPES):
        raise AttributionError(f"--show {show!r} is not known; choose {', '.join(SHAPES)}")
    kind = show or ("image" if inputs.dim() > 2 else "series")
    shape = SHAPES[kind]
    if inputs.dim() not in (len(shape), len(shape) + 1):
        wanted = f"[1, {', '.join(shape[1:])}] or [1, channels, {', '.join(shape[1:])}]"
        raise AttributionError(f"an input of shape {list(inputs.shape)} is not drawn as {kind}: it must be {wanted}")
    return kind


def _drawn(kind: str, relevance: Tensor, inputs: Tensor, noted: list[dict[str, Any]]) -> Any:
    """The picture of an array's relevance; the longer dimension of a spectrogram is time."""
    from ..explain import pictures
    from ..reports import explanation as sheet

    if kind == "image":
        side = sheet.grid_of(inputs.shape)
        marks = [(side * (row + 0.5) - 0.5, side * (column + 0.5) - 0.5) for row, column in (p["at"] for p in noted)]
        return pictures.side_by_side(relevance[0], inputs[0], marks)
    if kind == "series":
        return pictures.series(relevance[0], inputs[0])
    shades, sound = (t[0].squeeze(0) if t.dim() > 3 else t[0] for t in (relevance, inputs))
    return pictures.spectrogram(shades, sound, time=0 if shades.shape[0] > shades.shape[-1] else -1)


def _curves(score: Any, inputs: Any, relevance: Tensor, kind: str, tokenizer: Any) -> tuple[Any, str]:
    """What is left of the explained value as the input is taken away, and what stands in for it; or None, and why."""
    from ..audits.faithfulness import perturbation_curves, token_perturbation
    from ..reports.explanation import grid_of

    if kind != "text":
        channels = inputs.dim() > (3 if kind == "image" else 2)
        mean = inputs.mean(tuple(range(1 + channels, inputs.dim())), keepdim=True)
        region = grid_of(inputs.shape) if kind == "image" else 1
        steps = min(10, relevance[0].numel())
        found = perturbation_curves(score, inputs, relevance, steps=steps, replace=mean, region=region)
        return found, f"What was taken away was replaced by the mean of {'its channel' if channels else 'the input'}."
    for name in ("mask", "unk", "pad"):
        stand_in = getattr(tokenizer, f"{name}_token_id", None)
        if stand_in is not None:
            break
    else:
        return None, "Not checked: the tokenizer has no token for what is masked, unknown or padding."
    ids = inputs["input_ids"]
    free = ~torch.isin(ids, torch.tensor(list(getattr(tokenizer, "all_special_ids", []))))

    def of_ids(tokens: Tensor, kept: Tensor) -> Tensor:
        return score({**inputs, "input_ids": torch.where(kept, tokens, stand_in)})  # type: ignore[no-any-return]

    found = token_perturbation(of_ids, ids, relevance, free, steps=max(1, min(10, int(free.sum()))))
    return found, f"What was taken away was replaced by the tokenizer's {name} token."


def _of_folder(target: str) -> tuple[nn.Module, Any]:
    """The model of a transformers folder, and its tokenizer or why there is none."""
    config_file(Path(target))  # asks for no code from elsewhere, and is built within bounds, without weights
    transformers = transformers_library()
    try:
        config = transformers.AutoConfig.from_pretrained(target, trust_remote_code=False)
        name = (config.architectures or ["AutoModel"])[0]
        kind = getattr(transformers, name, None)
        if kind is not transformers.AutoModel and not hasattr(kind, "_from_config"):
            raise TypeError(f"{name!r} is none of its models")
        network = kind.from_pretrained(target)
    except Exception as error:  # of whatever a damaged folder makes
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise TargetError(f"{target!r} holds no model of transformers: {reason}") from error
    try:
        return network, transformers.AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    except Exception as error:  # the same; only a text needs it
        return network, error


def _model(target: str) -> tuple[nn.Module, Any]:
    """The model, and its tokenizer, or None or an error. A transformers folder may hold both, and a function may return both."""
    if Path(target).is_dir():
        return _of_folder(target)
    from .functions import call_target, load_target

    made = call_target(load_target(target), target)
    network, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, nn.Module):
        raise TargetError(
            f"{target!r} must return an nn.Module, or one with its tokenizer, not {type(network).__name__}"
        )
    return network, tokenizer


def _target(text: str) -> Any:
    from ..explain.targets import Contrast

    try:
        if text == "predicted":
            return text
        if ":" in text:
            first, second = text.split(":")
            return Contrast(int(first), int(second))
        if "," in text:
            return tuple(int(part) for part in text.split(","))
        return int(text)
    except ValueError:
        raise AttributionError(
            f'--target {text!r} is none of: a class index, "position,token", "a:b", "predicted"'
        ) from None


def _inputs(
    text: str, tokenizer: Any, size: int | None, mean: float, std: float, channels: int
) -> tuple[Any, list[str] | None]:
    path = Path(text) if len(text) < 1000 and "\n" not in text else Path("")
    if path.suffix.lower() in (*IMAGES, ".npy") and not path.is_file():  # reading a pipe may never end
        raise AttributionError(f"no such file: {path}")
    if path.suffix.lower() in IMAGES:
        return image_of(path, size, mean, std, channels), None
    if path.suffix.lower() == ".npy":
        return array_of(path), None
    if tokenizer is None or isinstance(tokenizer, Exception):
        why = f" ({type(tokenizer).__name__}: {one_line(tokenizer)})" if tokenizer is not None else ""
        raise AttributionError(
            f"a text needs a tokenizer{why}: give a transformers folder that has one, or a function that returns "
            "(model, tokenizer)"
        )
    with own_code("reading the text"):
        encoded = dict(tokenizer(text, return_tensors="pt"))
        return encoded, tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
