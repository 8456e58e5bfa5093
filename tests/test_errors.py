"""Bad input: a clear exception of the library's own, and the model as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph import errors
from lfpgraph.cli.functions import load_target

from .support.custom_ops import opaque, triple
from .support.helpers import RECORDED


class Calls(nn.Module):
    """Two linear layers with functions between and after them."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for function in self.functions:
            x = function(x)
        return self.last(x)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x))
        if x.sum() > 0:
            return x * 2
        return -x


@pytest.fixture
def x() -> Iterator[Tensor]:
    torch.manual_seed(0)
    yield torch.randn(3, 4)


def test_branch_on_data_in_the_static_engine(x: Tensor) -> None:
    """The message says where and what to do; weights, buffers, mode and random state are as before."""
    model = Branches()
    before, mode, rng = copy.deepcopy(model.state_dict()), model.training, torch.get_rng_state()
    lfpgraph.wrap(model, engine="static")
    with pytest.raises(errors.DataDependentError, match=r"Branches.*test_errors\.py:\d+.*retrace"):
        model(x)
    assert model.training == mode and torch.equal(torch.get_rng_state(), rng)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    lfpgraph.unwrap(model)
    assert model(x).shape == (3, 4)


@pytest.mark.parametrize("asked", ["auto", "live"])
def test_branch_on_data_runs(asked: str) -> None:
    """Both branches train, since the model itself runs."""
    model = Branches().double().eval()
    twin = copy.deepcopy(model)
    lfpgraph.wrap(model, RECORDED, engine=asked)
    signs = set()
    for seed in range(6):
        torch.manual_seed(seed)
        batch = torch.randn(3, 4, dtype=torch.float64)
        signs.add(bool(twin.norm(twin.layer(batch)).sum() > 0))
        for m in (model, twin):
            m.zero_grad()
            m(batch).square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    assert signs == {True, False}
    assert lfpgraph.explain_wrap(model).engine == "live"


def test_fallback_of_wrap_is_no_longer_needed(x: Tensor) -> None:
    """It is taken for a while, with a warning, and means the live engine."""
    with pytest.warns(FutureWarning, match="engine='live'"):
        model = lfpgraph.wrap(Branches(), fallback="retrace")
    model(x).sum().backward()
    assert lfpgraph.explain_wrap(model).engine == "live" and model.layer.weight.grad is not None


def test_operations_without_rule_listed_at_once(x: Tensor) -> None:
    model = lfpgraph.wrap(Calls(opaque, torch.relu, opaque))
    with pytest.raises(errors.NoRuleError) as caught:
        model(x)
    text = str(caught.value)
    assert text.count("lfptest.opaque") == 2 and "test_errors.py:" in text and "@lfpgraph.rule" in text


def test_module_path_is_named(x: Tensor) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return opaque(x)

    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 4), Inner(), nn.Linear(4, 2)))
    with pytest.raises(errors.NoRuleError, match=r"opaque\.default \(opaque[^,]*, 1, test_errors\.py"):
        model(x)


def test_derived_or_refused(x: Tensor) -> None:
    lfpgraph.wrap(model := Calls(triple))
    model(x).sum().backward()
    assert model.first.weight.grad is not None and bool(model.first.weight.grad.any())
    lfpgraph.wrap(refused := Calls(triple), on_missing="error")
    with pytest.raises(errors.NoRuleError, match="triple.*on_missing"):
        refused(x)


def test_reward_of_wrong_shape(x: Tensor) -> None:
    model = lfpgraph.wrap(Calls(torch.relu))
    outputs = model(x)
    with pytest.raises(errors.RewardError, match=r"\[5\].*\[3, 4\]"):
        lfpgraph.reward_loss(outputs, torch.ones(5))
    with pytest.raises(errors.RewardError, match=r"\[3, 5\]"):
        lfpgraph.feedback(lfpgraph.unwrap(model), x, reward=torch.ones(3, 5))
    with torch.no_grad():
        silent = model(x)
        assert float(lfpgraph.reward_loss(silent, torch.ones(3, 4))) == -12  # an evaluation wants the number alone
    with pytest.raises(errors.RewardError, match="no_grad"):
        lfpgraph.reward_loss(silent, torch.ones(3, 4))
    with pytest.raises(errors.RewardError, match="between 0 and 3"):
        lfpgraph.rewards.Softmax()(outputs, torch.tensor([0, 1, 9]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_when_checking(x: Tensor, bad: float) -> None:
    model = Calls()
    x[0, 0] = bad
    lfpgraph.wrap(model, check=True)
    with pytest.raises(errors.NonFiniteError, match="Calls"):
        model(x)
    lfpgraph.unwrap(model)
    with pytest.raises(errors.NonFiniteError):
        lfpgraph.feedback(model, x, reward=torch.ones(3, 4), check=True)
    with pytest.raises(errors.NonFiniteError):
        lfpgraph.feedback(model, torch.ones(3, 4), reward=torch.full((3, 4), bad), check=True)


def test_reward_not_finite_in_training(x: Tensor) -> None:
    model = lfpgraph.wrap(Calls(torch.relu), check=True)
    loss = lfpgraph.reward_loss(model(x), torch.full((3, 4), float("nan")))
    with pytest.raises(errors.NonFiniteError, match="signal"):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_integer_only_model() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.table[x] + 1

    with pytest.raises(errors.InputError, match="float"):
        lfpgraph.feedback(Counts(), torch.tensor([1, 2]), reward=torch.ones(2))


def test_wrapping_twice_and_unwrapping_unwrapped(x: Tensor) -> None:
    model = lfpgraph.wrap(Calls(torch.relu))
    with pytest.raises(errors.WrapError, match="unwrap"):
        lfpgraph.wrap(model)
    assert lfpgraph.is_wrapped(model)
    lfpgraph.unwrap(model)
    with pytest.raises(errors.WrapError, match="not wrapped"):
        lfpgraph.unwrap(model)
    with pytest.raises(errors.WrapError, match="nn.Module"):
        lfpgraph.wrap(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(errors.WrapError, match="derive, error"):
        lfpgraph.wrap(model, on_missing="guess")


ON_MISSING = ("on_missing", "derive, error")
FALLBACK = ("fallback", "error, retrace")


@pytest.mark.parametrize(
    ("function", "option", "known", "error"),
    [
        (lfpgraph.wrap, *ON_MISSING, errors.WrapError),
        (lfpgraph.wrap, *FALLBACK, errors.WrapError),
        (lfpgraph.wrap, "memory", '"fast", "min" or a share', errors.WrapError),
        (lfpgraph.feedback, *ON_MISSING, errors.InputError),
        (lfpgraph.feedback, *FALLBACK, errors.InputError),
        (lfpgraph.trace, *FALLBACK, errors.InputError),
        (lfpgraph.coverage, *FALLBACK, errors.InputError),
        (lfpgraph.attribute, *ON_MISSING, errors.AttributionError),
        (lfpgraph.attribute, *FALLBACK, errors.AttributionError),
        (lfpgraph.conservation, *ON_MISSING, errors.AttributionError),
        (lfpgraph.conservation, *FALLBACK, errors.AttributionError),
        (lfpgraph.relevance_flow, *ON_MISSING, errors.AttributionError),
        (lfpgraph.relevance_flow, *FALLBACK, errors.AttributionError),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if str(value).isidentifier() else ""),
)
def test_a_typo_in_an_option_lists_the_choices(
    function: Callable[..., object], option: str, known: str, error: type[errors.LfpGraphError], x: Tensor
) -> None:
    """Refused before anything is traced or changed, by every function that takes the option."""
    model = Calls(torch.relu)
    inputs = {lfpgraph.wrap: (), lfpgraph.feedback: (x, torch.ones(3, 4))}.get(function, (x,))  # type: ignore[call-overload]
    with pytest.raises(error, match=f"{option}='deriv' is not known; choose .*{known}"):
        function(model, *inputs, **{option: "deriv"})
    assert not lfpgraph.is_wrapped(model)


@pytest.mark.parametrize("what", [None, "gpt2", nn.Linear])
def test_what_is_no_model_is_not_wrapped(what: Any) -> None:
    with pytest.raises(errors.WrapError, match=f"{type(what).__name__} is not wrapped"):
        lfpgraph.unwrap(what)
    with pytest.raises(errors.InputError, match="args must be a tensor, a tuple or a dict, not object"):
        lfpgraph.coverage(nn.Linear(2, 2), object())


def test_words_of_a_million_letters_are_cut() -> None:
    for options in ({"composite": "x" * 10**6}, {"engine": "x" * 10**6}):
        with pytest.raises(errors.LfpGraphError) as told:
            lfpgraph.wrap(nn.Linear(2, 2), **options)
        assert len(str(told.value)) < 3000


def test_unknown_composite_lists_the_known() -> None:
    model = Calls()
    with pytest.raises(errors.CompositeError, match="gradient, .*lfp-0, .*lfp-epsilon"):
        lfpgraph.wrap(model, "lfp-delta")
    assert not lfpgraph.is_wrapped(model)
    with pytest.raises(errors.CompositeError, match="epsilon"):
        lfpgraph.get_composite("lfp-0").with_options(epsilom=1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere:build", "nowhere"),
        ("json:nothing", "no function 'nothing'; it has:.*loads"),
        ("json", "module:function"),
    ],
)
def test_targets(target: str, message: str) -> None:
    with pytest.raises(errors.TargetError, match=message):
        load_target(target)


def test_command_line_gives_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lfpgraph.cli import app as cli

    for arguments in (
        ["train", "nowhere:build", "json:loads"],
        ["train", "json:loads", "json:loads", "--composite", "x"],
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", ["lfpgraph", *arguments, "--out", str(tmp_path / "r.html")])
            cli.main()
        assert stop.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1
