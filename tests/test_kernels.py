"""The blocked formulas equal the plain ones, and static graphs use them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph import numerics
from lfpgraph.passes import kernels

from .support.helpers import relative
from .support.operations import Operations

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
    z_positive = z.relu()
    for write in (False, True):
        for positive, at in ((False, z), (True, z_positive)):
            given = s.clone()
            found = kernels.epsilon_factor(given, at, EPSILON, positive, write)
            torch.testing.assert_close(found, numerics.epsilon_factor(s, at, EPSILON), rtol=0, atol=0)
            assert (found.data_ptr() == given.data_ptr()) is write and (write or torch.equal(given, s))
        given = s.clone()
        found = kernels.identity_signal(given, x, z, EPSILON, write)
        torch.testing.assert_close(found, numerics.identity_signal(s, x, z, EPSILON), rtol=0, atol=0)
        assert (found.data_ptr() == given.data_ptr()) is write and (write or torch.equal(given, s))
        given = s.clone()
        found = kernels.rectified_factor(given, z_positive, EPSILON, write)
        passed = torch.where(z_positive > 0, s, 0.0)
        torch.testing.assert_close(found, numerics.epsilon_factor(passed, z_positive, EPSILON), rtol=0, atol=0)
        assert write or torch.equal(given, s)
    given = s.clone()
    assert kernels.scale_by_size(given, x) is given
    torch.testing.assert_close(given, s * x.abs(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n", "rows", "columns"), [(8, 3000, 300), (8, 70, 9000), (600, 3000, 300), (3, 5, 7), (0, 5, 7)]
)
def test_scaled_product(n: int, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    a, b, w = (torch.randn(shape, dtype=torch.float64) for shape in ((n, rows), (n, columns), (rows, columns)))
    torch.testing.assert_close(kernels.scaled_product(a.t(), b, w), (a.t() @ b) * w.abs())
    torch.testing.assert_close(kernels.scaled_product(a.t(), b, w.t().contiguous().t()), (a.t() @ b) * w.abs())


def test_mixed_layouts_and_dtypes_take_the_plain_way() -> None:
    s, x = values((2, 5, 160, 101), "plain", 0, torch.float32), values((2, 5, 160, 101), "strided", 1, torch.float32)
    torch.testing.assert_close(kernels.scale_by_size(s.clone(), x), s * x.abs(), rtol=0, atol=0)
    torch.testing.assert_close(
        kernels.epsilon_factor(s, x, EPSILON, False, False), numerics.epsilon_factor(s, x, EPSILON), rtol=0, atol=0
    )


def test_programs_run_in_blocks() -> None:
    """No formula of feedback makes a whole tensor of its own on the way, and the feedback is the eager walk's."""
    torch.manual_seed(0)
    layers = [nn.Linear(300, 600), nn.ReLU(), nn.Linear(600, 600), nn.GELU(), nn.Linear(600, 4)]
    model, x = nn.Sequential(*layers), torch.randn(400, 300)
    reward = torch.randn(400, 4)
    with Operations() as plain:
        expected = lfpgraph.feedback(model, x, reward=reward)
    lfpgraph.wrap(model)
    loss = lfpgraph.reward_loss(model(x), reward)
    with Operations() as blocked:
        loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert relative(-p.grad, expected[name]) < 1e-5
    activation, weight = 400 * 600, 600 * 600
    formulas = ("abs", "add", "addcdiv", "copysign", "div", "mul", "threshold_backward")
    assert all(plain.largest[f"aten::{name}"] >= activation for name in formulas)
    assert plain.largest["aten::abs"] == plain.largest["aten::mul"] == weight
    assert all(0 < blocked.largest[f"aten::{name}"] < activation for name in ("abs", "addcdiv", "copysign", "mul_"))
    assert all(blocked.largest[f"aten::{name}"] < activation for name in formulas)


@pytest.mark.parametrize("padding", [-1, 2])
def test_rows_of_a_tied_embedding(padding: int) -> None:
    """Rows added to a total are embedding_dense_backward's, repeated indices and the padding row included."""
    torch.manual_seed(0)
    total, s = torch.randn(9, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    indices = torch.randint(0, 9, (3, 5))
    expected = total + torch.ops.aten.embedding_dense_backward(s, indices, 9, padding, False)
    assert (indices == 2).any()
    found = kernels.add_rows(total, s, indices, 9, padding, False)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert found.data_ptr() == total.data_ptr()


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
    lfpgraph.wrap(model, "gradient")
    loss = model(ids).square().sum()
    with Operations() as seen:
        loss.backward()
    torch.testing.assert_close(model.embed.weight.grad, expected, rtol=1e-12, atol=1e-14)
    assert seen.counts["aten::index_add_"] == 1 and "aten::embedding_dense_backward" not in seen.counts
