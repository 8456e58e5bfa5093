"""The registry: who may register what, what a wrong answer says, and who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F

import lfpgraph
from lfpgraph.composites.composite import get_composite
from lfpgraph.errors import RuleError
from lfpgraph.registry import FAMILIES, find_rule, registered_rules

from .support.helpers import assert_same, gradients, lfp, remove_rule, restore_rule

aten = torch.ops.aten
ROOT = Path(__file__).parents[1]


@contextmanager
def restored(op: OpOverload) -> Iterator[None]:
    """Put the registry's rule of `op`, or its absence, back afterwards."""
    before = find_rule(op)
    try:
        yield
    finally:
        remove_rule(op)
        if before is not None:
            restore_rule(before)


class Small(nn.Module):
    """Linear, gelu, linear; the activation's module has a path of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


def batch() -> Tensor:
    return torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4)


def test_rules_are_sorted_and_keyed_by_overload() -> None:
    names = [str(entry.op) for entry in registered_rules()]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert all(isinstance(entry.op, OpOverload) and entry.source for entry in registered_rules())
    assert {entry.family.name for entry in registered_rules()} <= set(FAMILIES)


def test_second_registration_raises() -> None:
    before = find_rule(aten.mm.default)
    with pytest.raises(RuleError, match=r"aten\.mm\.default already has the rule contraction"):
        lfpgraph.rule(aten.mm.default, family="contraction")(lambda call, s, *args: call.vjp(s))
    with pytest.raises(RuleError, match="override=True"):
        lfpgraph.rule(aten.mm.default, override=False)(lambda call, s, *args: call.vjp(s))
    with pytest.raises(RuleError, match="already has the rule"):
        lfpgraph.rule(aten.mm.default, family=FAMILIES["view"])(lambda call, s, *args: call.vjp(s))
    assert find_rule(aten.mm.default) is before


def test_packet_is_refused() -> None:
    with pytest.raises(RuleError, match=r"not an operation overload; write e\.g\. torch\.ops\.aten"):
        lfpgraph.rule(aten.gelu)(lambda call, s, x: [s])  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="not an operation overload"):
        lfpgraph.rule("aten.gelu.default")(lambda call, s, x: [s])  # type: ignore[arg-type]


def test_new_operation_and_removal() -> None:
    op = aten.special_scaled_modified_bessel_k0.default
    assert find_rule(op) is None and remove_rule(op) is None
    with restored(op):
        handler = lfpgraph.rule(op)(lambda call, s, x: [s])
        entry = find_rule(op)
        assert entry is not None and entry.handler is handler and entry.family.name == "custom"
    assert find_rule(op) is None


def test_operation_by_name_needs_no_library() -> None:
    (entry,) = (entry for entry in registered_rules(by_name=True) if entry.op == "aten::_grouped_mm")
    assert entry.family is FAMILIES["contraction"]
    with pytest.raises(RuleError, match="aten::_grouped_mm already has the rule contraction"):
        lfpgraph.rule("aten::_grouped_mm", family="contraction")(lambda call, s, *args: call.vjp(s))
    if hasattr(aten, "_grouped_mm"):
        assert find_rule(aten._grouped_mm.default) is entry


def test_override_is_seen_by_wrap(engine: str) -> None:
    model, x = Small(), batch()
    usual = lfp(model, x, engine=engine)
    with restored(aten.gelu.default):

        @lfpgraph.rule(aten.gelu.default)
        def double_gelu(call: Any, s: Tensor, x: Tensor, **kwargs: Any) -> list[Tensor]:
            return [2 * s]

        expected = _by_hand(model, x)
        assert_same(lfp(model, x, composite="lfp-0", engine=engine), expected, 1e-12)
    assert_same(lfp(model, x, engine=engine), usual, 0.0)


def _by_hand(model: Small, x: Tensor) -> dict[str, Tensor]:
    """Gradient-like feedback of `Small` when gelu hands on twice the signal it gets."""
    hidden = F.gelu(model.first(x)).detach()
    out = model.last(hidden)
    s = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)  # as helpers.gradients weights the output
    before = 2 * (s @ model.last.weight.detach())
    plain = {
        "first.weight": before.mT @ x,
        "first.bias": before.sum(0),
        "last.weight": s.mT @ hidden,
        "last.bias": s.sum(0),
    }
    return {name: g * dict(model.named_parameters())[name].detach().abs() for name, g in plain.items()}


def _last(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name.startswith("last")}


def test_override_in_one_module_leaves_the_others(engine: str) -> None:
    model, x = Small(), batch()
    changed = get_composite("lfp-epsilon").override("act", composite="gradient")
    usual, mixed = (
        lfp(model, x, composite="lfp-epsilon", engine=engine),
        lfp(model, x, composite=changed, engine=engine),
    )  # type: ignore[arg-type]
    assert_same(_last(mixed), _last(usual), 0.0)
    assert not torch.allclose(mixed["first.weight"], usual["first.weight"], rtol=1e-3)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_rule_of_a_family_may_ask_for_the_derivative_of_a_function_written_out(engine: str) -> None:
    model, x = Small(), batch()
    model.act = Swish()  # type: ignore[assignment]

    def derivative(call: Any, s: Tensor, *args: Any, **kwargs: Any) -> Any:
        return call.vjp(s)

    changed = get_composite("lfp-0").with_options(handlers={"activation": derivative})
    expected = {
        name: g * dict(model.named_parameters())[name].detach().abs() for name, g in gradients(model, x).items()
    }
    assert_same(lfp(model, x, composite=changed, engine=engine), expected, 1e-12)  # type: ignore[arg-type]


def test_override_of_a_sequential_by_index(engine: str) -> None:
    # after an activation a linear layer is the true vjp anyway (the signal is stabilized), so two meet here
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    base = get_composite("lfp-epsilon").override("*", epsilon=0.25)
    usual = lfp(model, batch(), composite=base, engine=engine)  # type: ignore[arg-type]
    changed = lfp(model, batch(), composite=base.override("0", composite="gradient"), engine=engine)  # type: ignore[arg-type]
    for name, value in usual.items():
        assert torch.equal(value, changed[name]) != name.startswith("0."), name


def test_gradient_everywhere_but_one_module(engine: str) -> None:
    model, x = Small(), batch()
    only = get_composite("gradient").override("act", composite="lfp-0")
    plain = gradients(model, x)
    mixed = lfp(model, x, composite=only, engine=engine)  # type: ignore[arg-type]
    assert_same(_last(mixed), _last(plain), 1e-12)
    assert not torch.allclose(mixed["first.weight"], plain["first.weight"], rtol=1e-3)


def test_the_last_override_counts(engine: str) -> None:
    model, x = Small(), batch()
    rules = get_composite("gradient").override("*", scale="weight").override("first", scale="signal")
    found, plain = lfp(model, x, composite=rules, engine=engine), gradients(model, x)  # type: ignore[arg-type]
    size = {name: p.detach().abs() if name.startswith("last") else 1 for name, p in model.named_parameters()}
    assert_same(found, {name: g * size[name] for name, g in plain.items()}, 1e-12)
    once = get_composite("lfp-0").override("act", composite="gradient")
    twice = (
        get_composite("lfp-0")
        .override("*", epsilon=0.5)
        .override("*", composite=once)
        .override("act", composite="gradient")
    )
    assert_same(lfp(model, x, composite=twice, engine=engine), lfp(model, x, composite=once, engine=engine), 1e-12)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: [], r"aten\.gelu\.default .*answered 0 signals for 1 tensor arguments"),
        (lambda s: None, r"aten\.gelu\.default .*answered NoneType; return a list of 1 signals"),
        (lambda s: s, r"aten\.gelu\.default .*Tensor; return a list of 1 signals"),
        (lambda s: [3.0], r"aten\.gelu\.default .*answered float for tensor argument 0"),
        (lambda s: [s, None], r"aten\.gelu\.default .*answered 2 signals for 1 tensor arguments"),
        (
            lambda s: [s[:, :2]],
            r"aten\.gelu\.default .*shape \[3, 2\] for tensor argument 0 of shape \[3, 5\]",
        ),
    ],
    ids=["none", "nothing", "tensor", "number", "two", "shape"],
)
def test_wrong_answer_names_the_operation(answer: Any, message: str, engine: str) -> None:
    def wrong(call: Any, s: Tensor, x: Tensor, **kwargs: Any) -> Any:
        return answer(s)

    with restored(aten.gelu.default):
        lfpgraph.rule(aten.gelu.default)(wrong)
        with pytest.raises(RuleError, match=message):
            lfpgraph.feedback(Small(), batch(), torch.ones(3, 3).double())
        with pytest.raises(RuleError, match="act"):
            lfp(Small(), batch(), engine=engine)


def imported(path: Path) -> set[str]:
    """Dotted names a file imports; relative ones keep their dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            names |= {prefix} if node.module else {f"{prefix}{alias.name}" for alias in node.names}
    return names


RULE_FILES = sorted((ROOT / "rules").glob("*.py"))
# Rule files that share a rule: who may take one from whom.
BORROWED = {
    "activations": {".views"},
    "indexing": {".views"},
    "loops": {".recurrent", ".recurrent_loops", ".views", "functools", "threading"},
    "norms": {".views"},
    "recurrent": {"torch.nn.functional"},
    "recurrent_loops": {
        ".recurrent",
        "contextlib",
        "functools",
        "lfpgraph.native.loops",
        "lfpgraph.native.matmul",
        "lfpgraph.native.products",
        "lfpgraph.native.steps",
    },
    "reductions": {".views"},
    "statistics": {".views"},
    "sums": {".activations", ".linear", ".views"},
    "__init__": {f".{path.stem}" for path in RULE_FILES},
}


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_rule_files_import_no_engine(path: Path) -> None:
    ground = {f"lfpgraph.{name}" for name in ("errors", "numerics", "registry")}
    standard = {"__future__", "collections.abc", "dataclasses", "operator", "typing", "torch", "torch._ops"}
    assert imported(path) <= ground | standard | BORROWED.get(path.stem, set())


@pytest.mark.parametrize("path", sorted((ROOT / "lfpgraph").rglob("*.py")), ids=lambda path: path.as_posix())
def test_no_second_copy_of_the_rules(path: Path) -> None:
    names = imported(path)
    assert not any(name.split(".")[0] == "rules" for name in names), "`import rules` registers everything twice"


def test_the_walk_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "probe.py"
    lines = [
        "from lfpgraph.models_zoo import mlp",
        "from . import a, b",
        "import lfpgraph.engine.plan",
        "def f():",
        "  from ..x import y",
    ]
    file.write_text("\n".join(lines))
    assert imported(file) == {"lfpgraph.models_zoo", ".a", ".b", "lfpgraph.engine.plan", "..x"}
