"""The page of `lfpgraph explain`: input and relevance side by side, the places that matter most, and a check of both."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..explain import pictures
from ..explain.targets import weights_of
from ..pages import encodable, head

__all__ = ["explained_as", "grid_of", "page", "places", "places_html", "section"]

SHOWN = 5
_STYLE = """
.side { display: flex; flex-wrap: wrap; gap: 3rem; align-items: flex-start; }
.side > .narrow { flex: 1 1 20rem; max-width: 32rem; }
.figure { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .4rem; margin: .4rem 0; }
.figure svg { width: 100%; height: auto; display: block; }
.tokens { line-height: 2.3; font-size: 1.15rem; } .tokens span { padding: .15em .3em; border-radius: .2em; color: #222; }
.bar { display: inline-block; height: .7em; border-radius: .2em; }
"""


def explained_as(target: Any, output: Tensor) -> Callable[[nn.Module, Any], Tensor]:
    """What was explained, as a function of the model and of other inputs: one number for each of their samples.

    Args:
        target: see `lfpgraph.attribute`; no function. output: what the model returned for what was explained [1, ...].
    """
    weights = weights_of(target, output)

    def value(model: nn.Module, inputs: Any) -> Tensor:
        with torch.no_grad():
            found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        first = next(leaf for leaf in leaves if leaf.is_floating_point() and leaf.dim() > 0)
        return (first * weights).flatten(1).sum(1)

    return value


def grid_of(shape: Sequence[int], most: int = 16) -> int:
    """Side of the squares that an image [..., h, w] is cut into, so that at most `most` lie along a side; 1 if none fits."""
    common = math.gcd(shape[-2], shape[-1])
    sides = [side for side in range(1, common + 1) if common % side == 0 and max(shape[-2:]) / side <= most]
    return sides[0] if sides else 1


def places(relevance: Tensor, kind: str, tokens: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The places with the largest relevance by size, named: `name`, `relevance`, its `share` of all by size, `at`.

    Args:
        relevance: of one sample: [c, h, w] or [h, w] of an image, whose channels count together; [c, length] or [length] of
            a series; [frames, frequencies] of a spectrogram; [length] of tokens.
        kind: image, series, spectrogram or text.
    """
    values = relevance.detach().double().cpu()
    side = 1
    if kind == "image":
        values = values.sum(0) if values.dim() == 3 else values
        side = grid_of(values.shape)
        height, width = values.shape
        values = values.reshape(height // side, side, width // side, side).sum((1, 3))
    whole = float(values.abs().sum()) or 1.0
    found = []
    for index in values.abs().flatten().topk(min(SHOWN, values.numel())).indices.tolist():
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), values.shape))
        value = float(values[at])
        if value:
            name = _named(at, values.shape, side, kind, tokens)
            found.append({"name": name, "relevance": value, "share": abs(value) / whole, "at": list(at)})
    return found


def _named(at: tuple[int, ...], shape: Sequence[int], side: int, kind: str, tokens: Sequence[str] | None) -> str:
    if kind == "text" and tokens is not None:
        return f"{tokens[at[0]]} (place {at[0] + 1})"
    if kind == "image":
        rows, columns = (str(i + 1) if side == 1 else f"{i * side + 1} to {(i + 1) * side}" for i in at)
        thirds = [min(2, 3 * i // n) for i, n in zip(at, shape)]
        where = f"{('top', 'middle', 'bottom')[thirds[0]]} {('left', 'centre', 'right')[thirds[1]]}"
        return f"row {rows}, column {columns} ({where})"
    if kind == "spectrogram":
        return f"entry {at[0] + 1}, {at[1] + 1}"
    return f"step {at[-1] + 1}" + (f" of channel {at[0] + 1}" if len(at) > 1 and shape[0] > 1 else "")


def places_html(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of the most relevant places, with bars."""
    rows = []
    largest = max((place["share"] for place in found), default=1.0)
    for number, place in enumerate(found, 1):
        colour = pictures.RED if place["relevance"] > 0 else pictures.BLUE
        bar = f'<span class="bar" style="width:{6 * place["share"] / largest:.2f}rem;background:{colour}"></span>'
        rows.append(
            f"<tr><td>{number}</td><td>{html.escape(place['name'])}</td><td>{place['relevance']:+.4g}</td>"
            f"<td>{place['share']:.1%}</td><td>{bar}</td></tr>"
        )
    head_row = "<tr><th></th><th>place</th><th>relevance</th><th>share</th><th></th></tr>"
    return f"<table>{head_row}{''.join(rows)}</table>"


def section(wide: str, found: Sequence[Mapping[str, Any]], curves: Any, replaced: str) -> str:
    """The picture, and below it the places and the curves of what happens without them.

    Args:
        curves: `PerturbationCurves` of one sample, or None. replaced: what stood in for what was taken away; or why there
            are no curves.
    """
    check = f"<p>{html.escape(replaced)}</p>"
    if curves is not None:
        drawn = pictures.figure_html(pictures.perturbation_drawing(curves))
        area = f"Area between the curves: {float(curves.abpc[0]):.4g}, in units of what is explained; 0 is chance."
        check = f'<div class="figure">{drawn}</div><p>{area}</p>{check}'
    left = f"<div><h2>Most relevant places</h2>{places_html(found)}</div>"
    return f'{wide}<div class="side">{left}<div class="narrow"><h2>Is it true?</h2>{check}</div></div>'


def page(title: str, parts: Sequence[str], facts: Sequence[Mapping[str, str]]) -> str:
    """A self-contained HTML page of parts, with a table of facts, a column for each input."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(each[name])}</td>' for each in facts)}</tr>"
        for name in facts[0]
    )
    return encodable(f"{head(title, _STYLE)}{''.join(parts)}<h2>Facts</h2><table>{rows}</table></body></html>\n")
