"""Operations, rules and composites of the user's own: they train by both engines, and what cannot be is said in one line."""

from __future__ import annotations

import copy
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.lrp import layer_composite
from lfpgraph.errors import CompositeError, LfpGraphError, NoRuleError, RuleError
from lfpgraph.numerics import identity_signal

from .support.helpers import assert_same, lfp, remove_rule

aten = torch.ops.aten


@torch.library.custom_op("lfpgraph_own::cube", mutates_args=())
def cube(x: Tensor, k: float = 1.0) -> Tensor:
    return k * x**3


@torch.library.custom_op("lfpgraph_own::both", mutates_args=())
def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, x - y


@torch.library.custom_op("lfpgraph_own::third", mutates_args=())
def third(x: Tensor) -> Tensor:
    return x / 3


@torch.library.custom_op("lfpgraph_own::fourth", mutates_args=())
def fourth(x: Tensor) -> Tensor:
    return x / 4


third.register_autograd(lambda ctx, g: g / 3)


@cube.register_fake
def _(x: Tensor, k: float = 1.0) -> Tensor:
    return torch.empty_like(x)


@both.register_fake
def _(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


CUBE, BOTH = torch.ops.lfpgraph_own.cube.default, torch.ops.lfpgraph_own.both.default


def cubed(call: Any, s: Tensor, x: Tensor, k: float = 1.0) -> list[Tensor]:
    call.stabilized = True
    return [identity_signal(s, x, call.output, call.epsilon)]


def shared(call: Any, s: list[Tensor | None], x: Tensor, y: Tensor) -> list[Tensor]:
    plus, minus = (torch.zeros_like(x) if part is None else part for part in s)
    return [plus + minus, plus - minus]


@pytest.fixture
def rules() -> Iterator[None]:
    lfpgraph.rule(CUBE, family="activation", needs_vjp=False)(cubed)
    lfpgraph.rule(BOTH, needs_vjp=False)(shared)
    yield
    remove_rule(CUBE)
    remove_rule(BOTH)


class Own(nn.Module):
    """Two layers before, one behind operations without a derivative."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.kind = kind
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "one":
            return self.last(cube(self.a(x)) + self.b(x))
        plus, minus = both(self.a(x), self.b(x))
        if self.kind == "first of two":
            return self.last(plus)
        return self.last(cube(plus, k=2.0) * minus if self.kind == "two and one" else plus - 0.5 * minus)


X = torch.linspace(-1, 2, 20, dtype=torch.float64).view(5, 4)
KINDS = ["one", "first of two", "two", "two and one"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon", "lfp-0"])
def test_operations_without_a_derivative_train(kind: str, composite: str, engine: str, rules: None) -> None:
    model = Own(kind)
    expected = lfpgraph.feedback(model, X, reward=lambda out: -out.square(), composite=composite)
    twin = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    for _ in range(2):
        twin.zero_grad()
        out = twin(X)
        (out.square() / 2).sum().backward()
    found = {name: -p.grad for name, p in twin.named_parameters()}
    assert_same(found, {name: value for name, value in expected.items() if name in found}, 1e-5)
    assert all(value.any() for value in found.values())


@pytest.mark.parametrize("kind", KINDS[:3])
def test_relevance_passes_operations_of_ones_own(kind: str, rules: None) -> None:
    model = Own(kind)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    torch.testing.assert_close(lfpgraph.attribute(model, X, 1, "lrp-0").sum(1), model(X)[:, 1].detach())


def test_without_a_rule_they_are_refused(engine: str) -> None:
    with pytest.raises(NoRuleError, match="lfpgraph_own.both.default"):
        lfp(Own("two"), X, engine=engine)


def test_a_derivative_without_fake_values_is_used() -> None:
    """No program can be made of it; a live run hands on what autograd hands on."""
    layers, python = ([nn.Linear(4, 3), nn.Linear(3, 2)] for _ in range(2))
    found = []
    for (first, last), op in ((layers, third), (python, lambda x: x / 3)):
        torch.manual_seed(0)
        model = Sequence(first, op, last).double()
        for p in model.parameters():
            nn.init.uniform_(p, -1, 1)
        found.append(lfp(model, X, engine="live"))
    assert_same(*found, 1e-9)
    with pytest.raises(NoRuleError, match="lfpgraph_own.fourth.default"):
        lfp(Sequence(nn.Linear(4, 3), fourth, nn.Linear(3, 2)).double(), X, engine="live")


class Sequence(nn.Module):
    def __init__(self, first: nn.Module, op: Any, last: nn.Module) -> None:
        super().__init__()
        self.first, self.op, self.last = first, op, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lfpgraph.rule(CUBE, family="curve"), "family='curve' is not known; choose one of custom"),
        (lambda: lfpgraph.rule(), "a rule needs an operation"),
        (lambda: lfpgraph.rule(cubed), "is not an operation overload"),  # type: ignore[arg-type]
        (lambda: lfpgraph.rule(CUBE)(3), "3 is no rule"),  # type: ignore[arg-type]
    ],
    ids=["family", "nothing", "bare", "number"],
)
def test_what_is_no_rule_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make()


LFP = lfpgraph.get_composite("lfp")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LFP.with_options(handlers={"relu": cubed}), "'relu' is neither an operation overload"),
        (lambda: LFP.with_options(handlers={aten.relu: cubed}), "is neither an operation overload"),
        (lambda: LFP.with_options(handlers={nn.ReLU: cubed}), "is neither an operation overload"),
        (lambda: LFP.with_options(handlers={aten.relu.default: "flat"}), "'flat' for aten.relu.default is no rule"),
        (lambda: LFP.with_options(handlers=cubed), "must be a dict"),
        (lambda: LFP.override(1, epsilon=0.1), "pattern=1 must be text"),  # type: ignore[arg-type]
        (lambda: LFP.with_options(epsilon=-1.0), "epsilon=-1.0 must be a number"),
        (lambda: LFP.with_options(epsilon=float("nan")), "epsilon=nan must be a number"),
        (lambda: LFP.with_options(epsilon="x"), "epsilon='x' must be a number"),
        (lambda: LFP.with_options(wake="no"), "wake='no' is not known"),
        (lambda: LFP.at_depth(1, 0, "flat"), "no depth is from 1 on and below 0"),
        (lambda: LFP.at_depth(-1, -2, "flat"), "no depth is from -1 on and below -2"),
        (lambda: LFP.at_depth(0.5, 1, "flat"), "a whole number of layers"),  # type: ignore[arg-type]
        (lambda: layer_composite("mine", dense="gamma"), "'gamma' for .* is no rule"),  # type: ignore[arg-type]
        (lambda: lfpgraph.from_reward_function(3), "takes a function"),  # type: ignore[arg-type]
    ],
)
def test_what_a_composite_cannot_have_is_refused(make: Any, message: str) -> None:
    with pytest.raises(CompositeError, match=message):
        make()
    assert LFP.at_depth(-3, None, "flat").at_depth(0, -1, "flat").at_depth(-2, 3, "flat").by_place


def test_patterns_that_match_nothing_are_told_of(caplog: pytest.LogCaptureFixture, engine: str) -> None:
    rules = LFP.override("0", epsilon=0.1).override("*.bias", scale="weight").override("encoder.*", epsilon=0.1)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), rules, engine=engine)
    with caplog.at_level(logging.INFO, logger="lfpgraph"):
        for _ in range(2):
            model(X.float()).sum().backward()
        for _ in range(2):
            lfpgraph.attribute(model, X.float(), 1, rules)
        lfpgraph.feedback(model, X.float(), reward=lambda out: out, composite=rules)
    said = [record for record in caplog.records if "used nowhere" in record.getMessage()]
    assert all("a name like 'encoder.*', so" in record.getMessage() for record in said)
    assert [record.levelname for record in said] == [
        "INFO",
        "WARNING",
        "WARNING",
    ]  # modules may be added to what is wrapped


def test_a_rule_that_branches_on_values_has_no_program() -> None:
    def branching(call: Any, s: Tensor, x: Tensor) -> list[Tensor]:
        return [s if x.sum() > 0 else -s]

    rules = LFP.with_options(handlers={aten.relu.default: branching})
    with pytest.raises(LfpGraphError, match="a rule may not branch on them") as caught:
        lfpgraph.attribute(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double(), X, 1, rules)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", ["torch", "model"])
def test_a_module_that_torch_imports_in_a_run_is_not_the_models(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch imports much when it is first needed; what such a module does while it is imported is no part of the model."""
    name = f"lfpgraph_test_imported_by_{of}"
    (tmp_path / f"{name}.py").write_text("import sys\n\nSEEN = sys._getframe().f_lineno\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    file = str(Path(torch.__file__).with_name("lfpgraph_test.py")) if of == "torch" else str(tmp_path / "mine.py")
    space: dict[str, Any] = {}
    exec(compile(f"def run(x):\n    import {name}\n    return x * 2\n", file, "exec"), space)
    helper = types.SimpleNamespace(run=space["run"])

    class Importing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return helper.run(self.layer(x))  # type: ignore[no-any-return]

    model = lfpgraph.wrap(Importing(), engine="static")
    if of == "torch":
        model(X.float()).sum().backward()
    else:
        with pytest.raises(LfpGraphError, match="frames of its callers|imports"):
            model(X.float())
