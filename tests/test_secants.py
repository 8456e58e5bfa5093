"""Secants in C are the formulas': of every layout and type, by any number of threads, with a compiler or without."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator

import pytest
import torch
from lfpgraph.models_zoo.torch_models import Step
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.steps import STEP_WIDTHS
from lfpgraph.kernels import DECOMPOSITIONS, KERNELS
from lfpgraph.native import functions, passes
from lfpgraph.native.compiler import c_compiler
from lfpgraph.secants import operations
from lfpgraph.wrapping.calls import wrapping_of

from .support.helpers import assert_same, gradients

ops = torch.ops.lfpgraph
compiled = pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
FUNCTIONS = functions.FUNCTIONS
WIDTHS = {"of lfp": STEP_WIDTHS, "one": (0.3,), "six, unsorted": (3.0, 0.1, 3.0, 0.7, 0.5, 20.0)}
SHAPES = {"flat": (40_003,), "images": (5, 7, 31, 41)}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random numbers, with zeros of both signs, tiny and large ones, and some at the edges of what secants see."""
    x = 3 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    odd = [
        0.0,
        -0.0,
        torch.finfo(dtype).tiny,
        -torch.finfo(dtype).tiny / 4,
        1e4,
        -1e4,
        0.5,
        -0.5,
        0.3,
        3.93,
        -5.95,
        1e30,
    ]
    x.view(-1)[: len(odd)] = torch.tensor(odd, dtype=dtype)
    return x


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if layout == "turned":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x.repeat_interleave(2, -1)[..., ::2] if layout == "with gaps" else x


@compiled
@types
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("layout", ["plain", "channels last", "turned", "with gaps"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_comparison_is_the_formula_s_to_the_last_digit(
    shape: tuple[int, ...], layout: str, widths: tuple[float, ...], dtype: torch.dtype
) -> None:
    assert passes.passes_of(dtype) is not None
    x, s = (_laid_out(_numbers(shape, dtype, seed), layout) for seed in range(2))
    for side, spread in ((1, 0.7), (-1, 1.0)):
        given = x, torch.tensor(spread, dtype=dtype), 0.3, side, widths
        _check_equal(ops.comparison_signal, s, *given)
        _check_equal(ops.comparison_signal, s.flatten()[0].expand(shape), *given)  # as behind a mean
        _check_equal(ops.comparison_signal, s.half(), *given)
        _check_equal(ops.comparison_signal, s[..., :3], x[..., :3], *given[1:])  # few


def _check_equal(operation: Tensor, s: Tensor, *args: object) -> None:
    expected = DECOMPOSITIONS[operation.default](s, *args)
    found = operation(s, *args)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == expected.stride()
    if s.dtype == expected.dtype and s.stride() == expected.stride():
        over = s.clone()
        assert getattr(ops, operation.__name__ + "_")(over, *args) is over
        torch.testing.assert_close(over, expected, rtol=0, atol=0, equal_nan=True)


@compiled
@types
@pytest.mark.parametrize("width", [0.5, 0.2])
@pytest.mark.parametrize("layout", ["plain", "channels last", "turned", "with gaps"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_s_secant(function: str, layout: str, width: float, dtype: torch.dtype) -> None:
    """Within four units of the last digit of what is subtracted; the formula in float32 is within as many."""
    assert passes.passes_of(dtype) is not None
    x, s = (_laid_out(_numbers(SHAPES["images"], dtype, seed), layout) for seed in range(2))
    expected = operations._secant_slope(x.double(), width, function)
    found = ops.secant_signal(torch.ones_like(x), x, width, function)
    size = 4 * torch.finfo(dtype).eps * (x.double().abs() + 1) / min(2 * width, 1)
    ordinary = x.abs() < 1e20  # beyond it x + width is x
    assert ((found.double() - expected).abs() <= size)[ordinary].all()
    torch.testing.assert_close(ops.secant_signal(s, x, width, function), s * found, rtol=1e-6, atol=1e-30)
    assert found.stride() == operations._secant_slope(x, width, function).stride()
    one = s.flatten()[0].expand(x.shape)
    torch.testing.assert_close(ops.secant_signal(one, x, width, function), one * found, rtol=0, atol=0)
    over = s.clone()
    assert ops.secant_signal_(over, x, width, function) is over
    torch.testing.assert_close(over, ops.secant_signal(s, x, width, function), rtol=0, atol=0)


@compiled
@types
def test_what_is_not_finite(dtype: torch.dtype) -> None:
    """Where the formula has NaN there is NaN, and nothing of it elsewhere."""
    x, s = _numbers((40_000,), dtype), torch.ones(40_000, dtype=dtype)
    x[20_000:20_003] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    for function in FUNCTIONS:
        found, expected = (f(s, x, 0.5, function) for f in (ops.secant_signal, operations._secant))
        assert torch.equal(found.isnan(), expected.isnan()) and found[20_000:20_003].isnan().any()
    assert ops.spread_of(x, 1.0) == operations._spread(x, 1.0) == 1
    _check_equal(ops.comparison_signal, s, x, torch.tensor(1.0, dtype=dtype), 0.3, 1, STEP_WIDTHS)


@compiled
@types
@pytest.mark.parametrize("count", [0, 1, 7, 16_384, 100_001])
def test_the_spread(count: int, dtype: torch.dtype) -> None:
    x = torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(0)) / 3 + 5
    found, eps = ops.spread_of(x, 2.0), torch.finfo(dtype).eps
    torch.testing.assert_close(found, operations._spread(x, 2.0), rtol=20 * eps, atol=0)
    assert found.dtype is dtype and found.shape == ()
    assert ops.spread_of(x, 0.01) == (torch.tensor(0.01, dtype=dtype) if count > 1 else 1)
    assert ops.spread_of(torch.full_like(x, 0.25), 1.0) == 1


@compiled
@types
def test_any_number_of_threads_finds_the_same(dtype: torch.dtype, threads: None) -> None:
    x, s = (_numbers((200_003,), dtype, seed) for seed in range(2))
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        one = torch.tensor(1.0, dtype=dtype)
        found.append(
            [ops.spread_of(s, 9.0), ops.comparison_signal(s, x, one, 0.3, 1, STEP_WIDTHS)]
            + [ops.secant_signal(s, x, 0.5, function) for function in FUNCTIONS]
        )
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


class _Model(nn.Module):
    """All that has a loop, on 16,384 numbers and more: between convolutions, behind a mean, and once on few."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gelu, self.tanh, self.silu, self.step = nn.GELU(), nn.GELU("tanh"), nn.SiLU(), Step()
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.norm(self.first(x)))
        x = self.step(self.second(x)) + self.tanh(self.second(x))
        x = self.head(self.silu(self.second(x)).mean((2, 3)))
        return x + self.step(x)


@pytest.mark.parametrize(
    ("options", "last"),
    [({"engine": "live"}, False), ({"engine": "live"}, True), ({"memory": "min"}, True), ({"compile": True}, False)],
    ids=["live", "live, channels last", "min, channels last", "compiled"],
)
def test_engines_agree(options: dict[str, object], last: bool) -> None:
    torch.manual_seed(0)
    model, x = _Model().double(), torch.randn(9, 3, 16, 17, dtype=torch.float64)
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    found = []
    for how in (options, {"engine": "static"}):
        twin = lfpgraph.wrap(copy.deepcopy(model), "lfp", **how)
        found.append(gradients(twin, x))
    assert_same(*found, 1e-9, 1e-12)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Torch's operations have the same numbers, and a compiler that fails is told of once."""
    torch.manual_seed(0)
    model, x = _Model().double(), torch.randn(9, 3, 16, 17, dtype=torch.float64)
    expected = gradients(lfpgraph.wrap(copy.deepcopy(model), "lfp", engine="static"), x)
    monkeypatch.setattr(passes, "_known", {})
    monkeypatch.setenv("CC", "false")
    with caplog.at_level(logging.INFO, logger="lfpgraph"):
        found = gradients(lfpgraph.wrap(copy.deepcopy(model), "lfp", engine="static"), x)
    assert passes._known == {torch.float64: None}
    assert caplog.text.count("torch's own operations run what is written in C") == 1
    assert_same(found, expected, 1e-9, 1e-12)


@compiled
def test_who_runs_live_does_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_known", {})
    monkeypatch.setattr(passes, "_begun", {})
    before = set(threading.enumerate())
    x = torch.randn(20_000)
    found = [operations.comparison_signal(x, x, torch.tensor(1.0), 0.3, 1, STEP_WIDTHS)]
    for thread in set(threading.enumerate()) - before:
        thread.join(100)
    assert passes.known_passes(torch.float32) is not None
    found.append(operations.comparison_signal(x, x, torch.tensor(1.0), 0.3, 1, STEP_WIDTHS))
    assert torch.equal(*found)


@pytest.mark.parametrize("engine", ["static", "live"])
def test_no_compiler_for_models_that_have_no_use_for_it(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype) -> None:
        raise AssertionError("the compiler was started")

    monkeypatch.setattr(passes, "_known", {})
    monkeypatch.setattr(passes, "_compile", refuse)
    large = nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 3))
    small = nn.Sequential(nn.Linear(4, 60), nn.GELU(), Step(), nn.Linear(60, 3))
    for model in (large, small):
        gradients(lfpgraph.wrap(model, "lfp", engine=engine), torch.randn(50, 4))


def test_all_are_known_by_a_formula() -> None:
    for name in ("spread_of", "comparison_signal", "secant_signal"):
        operation = getattr(ops, name).default
        assert operation in KERNELS and operation in DECOMPOSITIONS


@compiled
@types
@pytest.mark.parametrize("layout", ["plain", "channels last", "turned"])
@pytest.mark.parametrize("shape", [(3, 5), (70, 2_001), (5, 7, 31, 141)], ids=["few", "many", "images"])
def test_a_parameter_s_feedback_in_one_pass(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit what torch's operations make of it, with a matrix of zeros and one that is not finite as well."""
    assert passes.passes_of(dtype) is not None
    s, w = (_laid_out(torch.randn(shape, dtype=dtype), layout) for _ in range(2))
    w[0, 0] = -0.0
    infinite = torch.where(w == w.max(), torch.inf, w)
    for weight in (w, torch.zeros_like(w), infinite, torch.where(w == w.max(), torch.nan, w)):
        for given in (s, weight, 0.1, 1.0), (s, weight, 0.0, 3.0), (s.contiguous(), weight, 0.1, 3.0):
            found = ops.scale_by_floored_size(*given)
            over = ops.scale_by_floored_size_(given[0].clone(), *given[1:])
            with monkeypatch.context() as without:
                without.setattr(passes, "_known", {})
                expected = ops.scale_by_floored_size(*given)
            for one in (found, over):
                torch.testing.assert_close(one, expected, rtol=0, atol=0, equal_nan=True)
            assert found.stride() == expected.stride() and over.stride() == given[0].stride()


class _Comparisons(nn.Module):
    """Comparisons with numbers, made numbers of some type; one is read twice."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = nn.Linear(4, 6), dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        both = x > 0.5
        found = [x > 0, x >= 0.25, x < 1, x <= -1, x == 0, x != 0, both]
        return sum(one.to(self.dtype) for one in found) * both.logical_not() + x


@pytest.mark.parametrize("compared", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_a_comparison_and_its_cast(compared: torch.dtype, wanted: torch.dtype) -> None:
    """They are one operation where the type stays, with the plain model's numbers."""
    torch.manual_seed(0)
    model, x = _Comparisons(wanted).to(compared), torch.randn(30, 4, dtype=compared)
    expected = model(x)
    lfpgraph.wrap(model, "lfp", engine="static")
    found = model(x)
    assert found.dtype is expected.dtype and torch.equal(found, expected)
    (entry,) = wrapping_of(model).static.programs
    assert entry.program.print().count("lfpgraph.compared") >= (6 if compared is wanted else 0)
    assert ("lfpgraph.compared" in entry.program.print()) == (compared is wanted)
    for how in ("gt", "ge", "lt", "le", "eq", "ne"):
        y = _numbers((3, 50), compared)
        assert torch.equal(ops.compared(y, 0.5, how), getattr(torch, how)(y, 0.5).to(compared))
        assert torch.equal(DECOMPOSITIONS[ops.compared.default](y, 0.5, how), ops.compared(y, 0.5, how))
