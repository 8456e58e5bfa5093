"""Pictures of explanations, the metrics of faithfulness, and the command line's `explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.audits.faithfulness import (
    comprehensiveness,
    perturbation_curves,
    sufficiency,
    token_erasure,
    token_perturbation,
    top1_accuracy,
)
from lfpgraph.errors import AttributionError
from lfpgraph.explain import pictures

from .support.helpers import run_cli


def _pixels(figure: object, axis: int) -> Tensor:
    """What an axis shows, as colours [h, w, 4]."""
    image = figure.axes[axis].images[0]  # type: ignore[attr-defined]
    return torch.tensor(image.cmap(image.norm(image.get_array())))


def test_heatmaps_have_zero_in_white_and_signs_in_red_and_blue() -> None:
    relevance = torch.zeros(2, 1, 4, 4)
    relevance[0, 0, 1, 2], relevance[0, 0, 3, 3] = 0.5, -0.5
    figure = pictures.heatmap(relevance, torch.rand(2, 1, 4, 4), ["a", "b"])
    shown = _pixels(figure, 2)
    red, blue, white = shown[1, 2], shown[3, 3], shown[0, 0]
    assert red[0] > 0.4 and red[2] < 0.1 and blue[2] > 0.2 and blue[0] < 0.1 and white[:3].min() > 0.95
    assert _pixels(figure, 3)[..., :3].min() > 0.95  # nothing but zeros
    with pytest.raises(AttributionError, match="is no image"):
        pictures.heatmap(torch.zeros(3))
    with pytest.raises(AttributionError, match="2 heatmaps but 1 images"):
        pictures.heatmap(relevance, torch.rand(1, 1, 4, 4))


def test_tokens_are_coloured_and_escaped() -> None:
    page = pictures.tokens_html(["<b>", "cat", "no"], torch.tensor([0.0, 2.0, -1.0]))
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert re.findall(r"rgb\((\d+),(\d+),(\d+)\)", page) == [
        ("255", "255", "255"),
        ("255", "0", "0"),
        ("128", "128", "255"),
    ]
    line = pictures.tokens_text(["a\x1b[2J", "b"], torch.tensor([1.0, 0.0]))
    assert "\x1b[2J" not in line and "48;2;255;0;0" in line
    with pytest.raises(AttributionError, match="2 tokens but relevance of 3"):
        pictures.tokens_html(["a", "b"], torch.zeros(3))


def test_series_and_spectrograms() -> None:
    figure = pictures.series(torch.randn(2, 20), torch.randn(2, 20), "two channels")
    assert len(figure.axes) == 2
    sound, relevance = torch.rand(30, 8), torch.zeros(30, 8)
    relevance[12, 5] = -2.0
    below = pictures.spectrogram(relevance, sound, "clicks", time=0).axes[1].images[0]
    assert below.get_array().shape == (8, 30) and below.get_array()[5, 12] == -2.0 and below.get_clim() == (-2.0, 2.0)
    with pytest.raises(lfpgraph.LfpGraphError, match="must both be"):
        pictures.spectrogram(relevance, sound.T)


class _Residual(nn.Module):
    """y = x + branch(x), the branch a scale by 3, then a sum over features."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4, bias=False)
        self.branch.weight.data = 3 * torch.eye(4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).sum(1, keepdim=True)


def test_relevance_flows_along_both_ways_of_a_residual() -> None:
    flow = lfpgraph.relevance_flow(_Residual(), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), composite="lrp-0")
    edges = {(a, b): relevance for a, b, relevance in flow.edges(data="relevance")}
    assert edges == pytest.approx(
        {("input 0", "branch"): 30.0, ("input 0", "model"): 10.0, ("branch", "model"): 30.0, ("model", "output"): 40.0}
    )
    assert flow.nodes["input 0"]["kept"] == pytest.approx(40.0) and flow.nodes["branch"]["kept"] == pytest.approx(0.0)
    whole = lfpgraph.relevance_flow(_Residual(), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), composite="lrp-0", most=1)
    assert whole.edges["input 0", "model"]["relevance"] == pytest.approx(40.0)  # both ways are one here
    axis = pictures.flow_drawing(flow).axes[0]
    widths = sorted(round(patch.get_linewidth(), 4) for patch in axis.patches)
    assert widths == pytest.approx([0.4 + 9 * size for size in (0.25, 0.75, 0.75, 1.0)], abs=1e-3)
    assert any(text.get_text().startswith("branch Linear   30") for text in axis.texts)


def test_flow_adds_up_and_is_cut_to_size() -> None:
    from lfpgraph.models_zoo.digits import vit

    torch.manual_seed(0)
    model, x = vit().eval().double(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    for most in (1, 6, 64):
        flow = lfpgraph.relevance_flow(model, x, 3, "attnlrp", most=most)
        assert len([name for name in flow if name != "output" and not name.startswith("input")]) <= most
        assert flow.nodes["output"]["relevance"] == pytest.approx(model(x).logits[:, 3].sum().item())
        assert sum(kept for _, kept in flow.nodes(data="kept")) == pytest.approx(flow.nodes["output"]["relevance"])
        order = dict(flow.nodes(data="order"))
        assert all(order[a] < order[b] for a, b in flow.edges)
    with pytest.raises(lfpgraph.LfpGraphError, match="at least 1"):
        lfpgraph.relevance_flow(model, x, 3, most=0)


def _linear_score(x: Tensor) -> Tensor:
    return x.flatten(1) @ torch.tensor([4.0, 3.0, 2.0, 1.0])


def test_metrics_by_hand() -> None:
    x = torch.ones(1, 4)
    right = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    curves = perturbation_curves(_linear_score, x, right, steps=4)
    assert curves.morf.tolist() == [[10.0, 6.0, 3.0, 1.0, 0.0]] and curves.lerf.tolist() == [[10.0, 9.0, 7.0, 4.0, 0.0]]
    assert curves.abpc.item() == pytest.approx((3 + 4 + 3 + 0) / 4)
    assert curves.aopc.item() == pytest.approx((0 + 4 + 7 + 9 + 10) / 5)
    assert perturbation_curves(_linear_score, x, -right, steps=4).abpc.item() == -curves.abpc.item()
    assert comprehensiveness(_linear_score, x, right, [0.25, 0.5]).item() == pytest.approx((4 + 7) / 2)
    assert sufficiency(_linear_score, x, right, [0.25, 0.5]).item() == pytest.approx((6 + 3) / 2)
    image = perturbation_curves(
        lambda t: t.sum((1, 2, 3)), torch.ones(1, 2, 4, 4), torch.rand(1, 4, 4), steps=4, region=2
    )
    assert image.morf.tolist() == [[32.0, 24.0, 16.0, 8.0, 0.0]]
    with pytest.raises(AttributionError, match="regions of 3 do not divide"):
        perturbation_curves(_linear_score, torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4), region=3)
    with pytest.raises(AttributionError, match="steps must lie between"):
        perturbation_curves(_linear_score, x, right, steps=5)


def test_metrics_of_tokens() -> None:
    tokens, mask = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[True, True, True, False]])

    def score(ids: Tensor, kept: Tensor) -> Tensor:
        return (ids * kept).sum(1).double()

    curves = token_perturbation(score, tokens, torch.tensor([[1.0, 2.0, 3.0, 9.0]]), mask, steps=3)
    assert curves.morf.tolist() == [[6.0, 3.0, 1.0, 0.0]] and curves.lerf.tolist() == [[6.0, 5.0, 3.0, 0.0]]
    without, alone = token_erasure(score, tokens, torch.tensor([[1.0, 2.0, 3.0, 9.0]]), mask, [0.01, 0.67])
    assert without.tolist() == [(3 + 5) / 2] and alone.tolist() == [(3 + 1) / 2]
    with pytest.raises(AttributionError, match="must have the tokens' shape"):
        token_erasure(score, tokens, torch.ones(1, 3))
    relevance = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert top1_accuracy(relevance, torch.tensor([[False, True], [False, True]])).item() == 0.5


MODULE = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
def series():
    return nn.Linear(20, 3)
"""


def test_explain_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    name = "explained_module"
    Path(f"{name}.py").write_text(MODULE)
    image.fromarray((np.eye(8) * 255).astype("uint8")).save("eye.png")
    np.save("series.npy", np.linspace(0, 1, 20)[None])
    np.save("words.npy", np.array(["a"]))
    call = ("explain", f"{name}:build", "--input", "eye.png", "--channels", "1", "--out", "r.html")
    assert run_cli(monkeypatch, *call, "--target", "2:0", "--flow", "--json", "r.json") == 0
    found = json.loads(Path("r.json").read_text())
    assert found["target"] == "2:0" and np.shape(found["relevance"]) == (1, 8, 8)
    page = Path("r.html").read_text()
    assert (
        page.count("<svg") == 3
        and re.search(r"row \d, column \d \(", page)
        and "http://" not in re.sub(r"http://(www\.w3\.org|purl\.org|creativecommons)", "", page)
    )
    assert (
        run_cli(monkeypatch, "explain", f"{name}:series", "--input", "series.npy", "--target", "1", "--out", "s.html")
        == 0
    )
    capsys.readouterr()
    bad = {
        "out of range": (*call, "--target", "7"),
        "none of: a class": (*call, "--target", "x"),
        "needs a tokenizer": ("explain", f"{name}:build", "--input", "some text", "--target", "1"),
        "no such file: none.png": ("explain", f"{name}:build", "--input", "none.png"),
        "numbers are needed": ("explain", f"{name}:build", "--input", "words.npy"),
        "itself does not run on these inputs": (*call, "--size", "9"),
    }
    for message, arguments in bad.items():
        assert run_cli(monkeypatch, *arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_explain_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("worded.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Words:\n"
        "    def __call__(self, text, return_tensors):\n"
        "        return {'input_ids': torch.tensor([[len(w) for w in text.split()]])}\n"
        "    def convert_ids_to_tokens(self, ids):\n"
        "        return [f'w{i}' for i in ids]\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.e, self.h = nn.Embedding(9, 4), nn.Linear(4, 3)\n"
        "    def forward(self, input_ids):\n"
        "        return self.h(self.e(input_ids).mean(1))\n"
        "def build():\n"
        "    return Net(), Words()\n"
    )
    assert run_cli(monkeypatch, "explain", "worded:build", "--input", "one three five", "--target", "1") == 0
    assert "w3" in capsys.readouterr().out and "w5" in Path("explanation.html").read_text()
    two = ("--input", "one three", "--input", "<b> is no tag", "--target", "1", "--json", "two.json")
    assert run_cli(monkeypatch, "explain", "worded:build", *two, "--flow") == 0
    said, page = capsys.readouterr().out, Path("explanation.html").read_text()
    assert [found["input"] for found in json.loads(Path("two.json").read_text())] == ["one three", "<b> is no tag"]
    assert "one three: explained " in said and said.count("report: ") == 1
    assert (
        page.count("Flow of relevance by cp-lrp") == 2 and "<h2>&lt;b&gt; is no tag</h2>" in page and "<b>" not in page
    )
