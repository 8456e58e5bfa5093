"""Explanations as pictures: images, series, sound, tokens, and the flow of relevance from module to module."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import AttributionError

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

__all__ = [
    "flow_drawing", "heatmap", "perturbation_drawing", "series", "side_by_side", "spectrogram", "tokens_html",
    "tokens_text",
]  # fmt: skip

COLOURS = "seismic"  # blue for negative, white for zero, red for positive
RED, BLUE = "#b2182b", "#2166ac"


def heatmap(
    relevance: Tensor, images: Tensor | None = None, titles: Sequence[str] = (), colours: str = COLOURS
) -> Figure:
    """Relevance of images as colours around zero, each sample on a scale of its own, beside the images if given.

    Args:
        relevance: [n, c, h, w] (summed over channels), [n, h, w] or [h, w].
        images: of the same samples, [n, c, h, w] or [n, h, w].
        titles: one for each sample.
        colours: a diverging colour map of matplotlib.
    """
    maps = _maps(relevance)
    shown = None if images is None else _pixels(images)
    if shown is not None and len(shown) != len(maps):
        raise AttributionError(f"{len(maps)} heatmaps but {len(shown)} images")
    rows = 1 if shown is None else 2
    figure = _drawing(figsize=(1.7 * len(maps), 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, len(maps), squeeze=False)
    for i, values in enumerate(maps):
        if shown is not None:
            axes[0][i].imshow(shown[i], cmap="gray", interpolation="nearest")
        size = float(values.abs().max()) or 1.0
        axes[-1][i].imshow(values.numpy(), cmap=colours, vmin=-size, vmax=size, interpolation="nearest")
        if i < len(titles):
            axes[0][i].set_title(titles[i], fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def side_by_side(relevance: Tensor, image: Tensor, marks: Sequence[tuple[float, float]] = ()) -> Figure:
    """One image, its relevance, and the relevance laid over the image, large, with the scale of the colours.

    Args:
        relevance: [c, h, w] (summed over channels) or [h, w].
        image: [c, h, w].
        marks: (row, column) of places that get a number, from 1 on.
    """
    values, shown = _maps(relevance[None] if relevance.dim() == 3 else relevance)[0], _pixels(image[None])[0]
    if values.shape != shown.shape[:2]:
        raise AttributionError(f"relevance {list(relevance.shape)} does not fit the image {list(image.shape)}")
    figure = _drawing(figsize=(12, 4.3), layout="constrained")
    size = float(values.abs().max()) or 1.0
    axes = figure.subplots(1, 3)
    grey = shown if shown.ndim == 2 else shown.mean(-1)
    for axis, title in zip(axes, ("input", "relevance", "both")):
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
    axes[0].imshow(shown, cmap="gray", interpolation="nearest")
    scale = {"cmap": COLOURS, "vmin": -size, "vmax": size, "interpolation": "nearest"}
    drawn = axes[1].imshow(values.numpy(), **scale)
    axes[2].imshow(grey, cmap="gray", interpolation="nearest")
    axes[2].imshow(values.numpy(), alpha=(values.abs() / size).sqrt().numpy() * 0.85, **scale)
    for number, (row, column) in enumerate(marks, 1):
        axes[2].annotate(
            str(number), (column, row), ha="center", va="center", fontsize=9,
            bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "alpha": 0.85, "lw": 0.5},
        )  # fmt: skip
    figure.colorbar(drawn, ax=axes, label="relevance: against (blue), for (red)", fraction=0.03, pad=0.01)
    return figure


def series(relevance: Tensor, values: Tensor, title: str = "", colours: str = COLOURS) -> Figure:
    """A series [length] or [channels, length] as lines, each step coloured by its relevance (of the same shape)."""
    lines, shades = (t.detach().double().cpu().reshape(-1, t.shape[-1]) for t in (values, relevance))
    if lines.shape != shades.shape:
        raise AttributionError(f"relevance {list(relevance.shape)} does not fit the series {list(values.shape)}")
    figure = _drawing(figsize=(7, 1.2 + 0.9 * len(lines)), layout="constrained")
    size = float(shades.abs().max()) or 1.0
    for axis, line, shade in zip(figure.subplots(len(lines), 1, squeeze=False, sharex=True)[:, 0], lines, shades):
        low, high = float(line.min()), float(line.max()) + 1e-9
        axis.imshow(
            shade[None].numpy(), cmap=colours, vmin=-size, vmax=size, aspect="auto", alpha=0.6,
            extent=(-0.5, len(line) - 0.5, low, high),
        )  # fmt: skip
        axis.plot(line.numpy(), color="black", linewidth=1)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def spectrogram(relevance: Tensor, values: Tensor, title: str = "", time: int = -1, colours: str = COLOURS) -> Figure:
    """A spectrogram above the relevance of its entries, time to the right and frequency upwards.

    Args:
        relevance, values: of one sample, both [frequencies, frames], or [frames, frequencies] with time=0.
        time: the dimension of time.
        colours: a diverging colour map of matplotlib.
    """
    if relevance.shape != values.shape or values.dim() != 2:
        raise AttributionError(
            f"relevance {list(relevance.shape)} and spectrogram {list(values.shape)} must both be [frequencies, frames]"
        )
    sound, shades = (t.detach().double().cpu().movedim(time, -1).numpy() for t in (values, relevance))
    figure = _drawing(figsize=(7, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    size = float(abs(shades).max()) or 1.0
    above.imshow(sound, cmap="gray", origin="lower", aspect="auto", interpolation="nearest")
    shown = below.imshow(
        shades, cmap=colours, vmin=-size, vmax=size, origin="lower", aspect="auto", interpolation="nearest"
    )
    figure.colorbar(shown, ax=below, label="relevance")
    for axis in (above, below):
        axis.set_ylabel("frequency")
    below.set_xlabel("frame")
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def perturbation_drawing(curves: Any, title: str = "") -> Figure:
    """The check of an explanation: the score as features go, most relevant first (low is good) and least relevant first.

    Args:
        curves: from `lfpgraph.metrics.perturbation_curves` or `token_perturbation`; the mean over samples is drawn.
    """
    lines = {"most relevant first": (curves.morf, RED), "least relevant first": (curves.lerf, BLUE)}
    figure = _drawing(figsize=(4.2, 3), layout="constrained")
    axis = figure.subplots()
    means = {name: values.detach().double().cpu().mean(0).numpy() for name, (values, _) in lines.items()}
    portion = [100 * i / (curves.morf.shape[1] - 1) for i in range(curves.morf.shape[1])]
    for name, (_, colour) in lines.items():
        axis.plot(portion, means[name], "o-", markersize=3, color=colour, label=name)
    axis.fill_between(portion, *means.values(), color="gray", alpha=0.2)
    axis.set_xlabel("features replaced, %")
    axis.set_ylabel("score")
    axis.set_title(f"{title}{': ' if title else ''}area {float(curves.abpc.mean()):.4g}", fontsize=9)
    axis.legend(fontsize=8)
    return figure


_DARK = 110  # of red: on such a blue words are white


def tokens_html(tokens: Sequence[str], relevance: Tensor) -> str:
    """Tokens in a line of HTML, red for positive and blue for negative relevance [length]; the number when pointed at."""
    parts = []
    for token, value, (red, green, blue) in _tokens(tokens, relevance):
        colours = f"background:rgb({red},{green},{blue})" + (";color:#fff" if red < _DARK else "")
        parts.append(f'<span style="{colours}" title="{value:.4g}">{html.escape(token) or "&nbsp;"}</span>')
    return '<p class="tokens">' + " ".join(parts) + "</p>"


def tokens_text(tokens: Sequence[str], relevance: Tensor) -> str:
    """The same tokens for a terminal, in 24-bit colours."""
    values = [value for _, value, _ in _tokens(tokens, relevance)]
    size = max(map(abs, values), default=0.0) or 1.0
    return " ".join(shade_text(token, value / size) for token, value in zip(tokens, values))


def shade_text(word: str, strength: float) -> str:
    """A word for a terminal, on the shade of a strength between -1 and 1."""
    red, green, blue = shade(strength)
    ink = 97 if red < _DARK else 30
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[{ink}m{printable(word)}\x1b[0m"


def printable(word: str) -> str:
    """A word without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in word)


def flow_drawing(flow: networkx.DiGraph, title: str = "") -> Figure:
    """Relevance between modules, drawn from the inputs (top) to the output (bottom) in the order they run.

    A line's width is the size of what is handed back over it, against the largest; red is positive, blue negative. What skips
    modules goes round them. Beside each module: what was handed to it, and in brackets what stayed there, in units of the output.

    Args:
        flow: from `lfpgraph.relevance_flow`, or a circuit of `lfpgraph.patching`.

    Raises:
        AttributionError: it is something else.
    """
    from matplotlib.patches import FancyArrowPatch

    if not hasattr(flow, "edges") or any("order" not in facts for _, facts in flow.nodes(data=True)):
        raise AttributionError(f"a flow comes from lfpgraph.relevance_flow or a circuit, not {type(flow).__name__}")

    order = sorted(flow, key=lambda name: flow.nodes[name]["order"])
    rows = {name: -i for i, name in enumerate(order)}
    largest = max((abs(r) for _, _, r in flow.edges(data="relevance")), default=0.0) or 1.0
    figure = _drawing(figsize=(7, 0.8 + 0.42 * len(order)), layout="constrained")
    axis = figure.subplots()
    for source, user, relevance in flow.edges(data="relevance"):
        skipped = rows[source] - rows[user] - 1
        axis.add_patch(
            FancyArrowPatch(
                (0, rows[source]), (0, rows[user]), arrowstyle="-", shrinkA=7, shrinkB=7,
                connectionstyle=f"arc3,rad={min(0.5, 0.9 / (skipped + 1)) if skipped else 0}",
                linewidth=0.4 + 9 * abs(relevance) / largest, color=RED if relevance >= 0 else BLUE, alpha=0.75,
            )
        )  # fmt: skip
    for name, row in rows.items():
        handed, kept = flow.nodes[name]["relevance"], flow.nodes[name]["kept"]
        kind = flow.nodes[name].get("kind", "")
        text = (
            f"{name} {kind}".rstrip() + f"   {handed:.3g}" + (f" ({kept:+.2g})" if abs(kept) > 0.005 * largest else "")
        )
        axis.text(0.06, row, text, fontsize=8, va="center")
        axis.plot(0, row, "o", color="black", markersize=4)
    axis.set_xlim(-0.5, 1.8)
    axis.set_ylim(0.6 - len(order), 0.6)
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9)
    return figure


@functools.cache
def _drawings() -> Any:
    """matplotlib's figure, which also shows itself in a notebook."""
    import io

    from matplotlib.figure import Figure

    class Drawing(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=80)
            return buffer.getvalue()

    return Drawing


def _drawing(**how: Any) -> Figure:
    return _drawings()(**how)  # type: ignore[no-any-return]


def figure_html(figure: Figure) -> str:
    """A figure inside HTML, as SVG."""
    import io

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _maps(relevance: Tensor) -> Tensor:
    if not isinstance(relevance, Tensor):
        raise AttributionError(f"relevance is a tensor, not {type(relevance).__name__}")
    values = relevance.detach().double().cpu()
    if values.dim() == 4:
        values = values.sum(1)
    values = values[None] if values.dim() == 2 else values
    if values.dim() != 3 or len(values) == 0:
        raise AttributionError(f"relevance {list(relevance.shape)} is no image [n, c, h, w], [n, h, w] or [h, w]")
    return values


def _pixels(images: Tensor) -> list[Any]:
    values = images.detach().double().cpu()
    low, high = values.amin(tuple(range(1, values.dim())), True), values.amax(tuple(range(1, values.dim())), True)
    values = (values - low) / (high - low).clamp_min(1e-12)
    if values.dim() == 4:
        values = values.permute(0, 2, 3, 1)[..., :3]
        values = values.mean(-1) if values.shape[-1] != 3 else values
    return [v.numpy() for v in values]


def _tokens(tokens: Sequence[str], relevance: Tensor) -> list[tuple[str, float, tuple[int, int, int]]]:
    """Each token with its relevance and the shade of that, against the largest."""
    values = relevance.detach().double().cpu().flatten()
    if len(values) != len(tokens):
        raise AttributionError(f"{len(tokens)} tokens but relevance of {len(values)}")
    size = float(values.abs().max()) if len(values) else 1.0
    return [(t, float(v), shade(float(v) / (size or 1.0))) for t, v in zip(tokens, values)]


def shade(strength: float) -> tuple[int, int, int]:
    """Red for 1, white for 0, blue for -1."""
    pale = round(255 * (1 - min(abs(strength), 1.0)))
    return (255, pale, pale) if strength >= 0 else (pale, pale, 255)
