"""The formulas as operations: equal to the plain ones, in place or not, one node each in static graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.kernels import DECOMPOSITIONS, KERNELS
from lfpgraph.numerics import epsilon_factor, scale_by_floored_size, stabilize
from lfpgraph.wrapping.calls import wrapping_of

from .support.helpers import relative
from .support.operations import Operations

ops = torch.ops.lfpgraph
EPSILON = 1e-3
SHAPES = [(7,), (3, 70_001), (2, 5, 160, 101)]  # below a block; above, and no multiple of one
LAYOUTS = ["plain", "channels-last", "strided"]


def values(shape: tuple[int, ...], layout: str, seed: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=dtype)
    x[x.abs() < 0.1] = 0.0
    x.view(-1)[::7] *= -0.0
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    return x.transpose(0, -1).contiguous().transpose(0, -1) if layout == "strided" else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_the_plain_formulas(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    s, x, z = (values(shape, layout, seed, dtype) for seed in range(3))
    check(ops.scale_by_size, s, x)
    check(ops.epsilon_factor, s, z, EPSILON, False)
    check(ops.epsilon_factor, s, z.relu(), EPSILON, True)
    check(ops.rectified_factor, s, z.relu(), EPSILON)
    check(ops.identity_signal, s, x, z, EPSILON)


def check(operation: Any, s: Tensor, *others: Any) -> None:
    """The operation and its in-place form answer what the formula does, and write only where they should."""
    expected = DECOMPOSITIONS[operation.default](s, *others)
    given, copies = s.clone(), [o.clone() if isinstance(o, Tensor) else o for o in others]
    found = operation(given, *others)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.stride() == expected.stride() and torch.equal(given, s)
    in_place = getattr(ops, operation.__name__ + "_")
    assert in_place(given, *others) is given
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    assert all(torch.equal(o, c) if isinstance(o, Tensor) else o == c for o, c in zip(others, copies))


@pytest.mark.parametrize("columns", [5, 70_001])
def test_the_formulas_are_what_they_are_called(columns: int) -> None:
    s, x, z = (values((3, columns), "plain", seed, torch.float64) for seed in range(3))
    close = {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(ops.scale_by_size(s, x), s * x.abs(), rtol=0, atol=0)
    torch.testing.assert_close(ops.epsilon_factor(s, z, EPSILON, False), s * z / stabilize(z, EPSILON), **close)
    torch.testing.assert_close(ops.identity_signal(s, x, z, EPSILON), s * z / stabilize(x, EPSILON), rtol=0, atol=0)
    passed = torch.where(z > 0, s, 0.0)
    expected = ops.epsilon_factor(passed, z.relu(), EPSILON, True)
    torch.testing.assert_close(ops.rectified_factor(s, z.relu(), EPSILON), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n", "rows", "columns"), [(8, 3000, 300), (8, 70, 9000), (600, 3000, 300), (3, 5, 7), (0, 5, 7)]
)
def test_scaled_product(n: int, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    a, b, w = (torch.randn(shape, dtype=torch.float64) for shape in ((n, rows), (n, columns), (rows, columns)))
    torch.testing.assert_close(ops.scaled_product(a.t(), b, w), (a.t() @ b) * w.abs())
    torch.testing.assert_close(ops.scaled_product(a.t(), b, w.t().contiguous().t()), (a.t() @ b) * w.abs())


def test_mixed_layouts_types_and_shapes_take_the_plain_formula() -> None:
    s, x = values((2, 5, 160, 101), "plain", 0, torch.float32), values((2, 5, 160, 101), "strided", 1, torch.float32)
    check(ops.scale_by_size, s, x)
    check(ops.epsilon_factor, s, x, EPSILON, False)
    torch.testing.assert_close(ops.identity_signal(s, x, x.double(), EPSILON), s * x.double() / stabilize(x, EPSILON))
    torch.testing.assert_close(ops.identity_signal(s, x, x[:1], EPSILON), s * x[:1] / stabilize(x, EPSILON))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (7, 3), (600, 400)])
@pytest.mark.parametrize("unit", [1.0, 0.1, 3.0])
def test_floor_in_units_of_the_root_mean_square(shape: tuple[int, ...], dtype: torch.dtype, unit: float) -> None:
    """What is written over the signal, in blocks or not, is the formula."""
    torch.manual_seed(0)
    s, w = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    wide = w.double()
    rms = wide.square().mean().sqrt()
    expected = s.double() * torch.maximum(wide.abs(), 0.5 * rms) * (1 if unit == 1 else max(unit, 1 / rms))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    found = scale_by_floored_size(s, w, 0.5, unit)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    over = scale_by_floored_size(s, w, 0.5, unit, over=True)
    assert over is s and torch.equal(over, found)


def test_a_floor_for_complex_weights() -> None:
    s, w = torch.randn(6, dtype=torch.complex128), torch.randn(6, dtype=torch.complex128)
    floor = 0.5 * w.abs().square().mean().sqrt()
    torch.testing.assert_close(scale_by_floored_size(s, w, 0.5, 3.0), s * torch.maximum(w.abs(), floor) * 3)
    torch.testing.assert_close(scale_by_floored_size(s, w, 0.5, 0.1), s * torch.maximum(w.abs(), floor) / (2 * floor))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 3), (600, 400)])
def test_feedback_in_its_own_units_is_finite(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of zeros it is zero, of small numbers as large as the signal."""
    zero, small, s = (torch.full(shape, value, dtype=dtype) for value in (0.0, 1e-4, 1.0))
    assert not scale_by_floored_size(s, zero, 0.1, 3.0).any()
    torch.testing.assert_close(scale_by_floored_size(s, small, 0.1, 3.0), s, rtol=2e-2, atol=0)
    assert scale_by_floored_size(s, torch.full_like(s, torch.finfo(dtype).tiny), 0.1, 3.0).isfinite().all()


def test_autograd_records_the_formula() -> None:
    s, z = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: epsilon_factor(s, z, 0.1), (z,))


def test_programs_run_in_blocks() -> None:
    """No formula of feedback makes a whole tensor of its own on the way, and the feedback is the eager walk's."""
    torch.manual_seed(0)
    layers = [nn.Linear(300, 600), nn.ReLU(), nn.Linear(600, 600), nn.GELU(), nn.Linear(600, 4)]
    model, x = nn.Sequential(*layers), torch.randn(400, 300)
    reward = torch.randn(400, 4)
    expected = lfpgraph.feedback(model, x, reward=reward, composite="lfp-epsilon")
    lfpgraph.wrap(model, "lfp-epsilon", engine="static")
    for _ in range(2):  # the first gradients are compared with what was handed on
        model(x).sum().backward()
    model.zero_grad()
    loss = lfpgraph.reward_loss(model(x), reward)
    with Operations() as blocked:
        loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert relative(-p.grad, expected[name]) < 1e-5
    activation = 400 * 600
    formulas = ("abs", "add", "addcdiv", "copysign", "div", "mul", "threshold_backward")
    (entry,) = wrapping_of(model).static.programs
    assert (
        "lfpgraph.epsilon_factor" in entry.program.print()
    )  # called past the dispatcher, which therefore sees its parts
    assert all(blocked.largest[f"aten::{name}"] < activation for name in formulas)


def test_all_that_is_traced_has_a_decomposition() -> None:
    """Exporters and compilers see ATen; `fuse_pairs`, which makes two others, does not run for them, and one is for inductor."""
    functional = {op for op in KERNELS if not op._schema.is_mutable} - {
        ops.scaled_product.default,
        ops.add_rows.default,
        ops.floor_and_unit.default,
    }
    assert functional == set(DECOMPOSITIONS)


@pytest.mark.parametrize("padding", [-1, 2])
def test_rows_of_a_tied_embedding(padding: int) -> None:
    """Rows added to a total are embedding_dense_backward's, repeated indices and the padding row included."""
    torch.manual_seed(0)
    total, s = torch.randn(9, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    indices = torch.randint(0, 9, (3, 5))
    expected = total + torch.ops.aten.embedding_dense_backward(s, indices, 9, padding, False)
    assert (indices == 2).any()
    before = total.clone()
    torch.testing.assert_close(ops.add_rows(total, s, indices, 9, padding, False), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(total, before)
    assert ops.add_rows_(total, s, indices, 9, padding, False) is total
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=1e-14)


def test_tied_embeddings_use_it() -> None:
    """A language model with tied weights runs the kernel, and gets autograd's gradient under the gradient composite."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6, padding_idx=0)

        def forward(self, ids: Tensor) -> Tensor:
            return torch.tanh(self.embed(ids)) @ self.embed.weight.t()

    model, ids = Tied().double(), torch.tensor([[1, 2, 0, 2], [3, 3, 10, 0]])
    model(ids).square().sum().backward()
    expected = model.embed.weight.grad
    model.zero_grad()
    lfpgraph.wrap(model, "gradient", engine="static")
    loss = model(ids).square().sum()
    with Operations() as seen:
        loss.backward()
    torch.testing.assert_close(model.embed.weight.grad, expected, rtol=1e-12, atol=1e-14)
    assert seen.counts["aten::index_add_"] == 1 and "aten::embedding_dense_backward" not in seen.counts
