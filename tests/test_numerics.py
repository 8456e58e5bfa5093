"""The divisions: `stabilize`, `epsilon_factor`, `identity_signal`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lfpgraph.numerics import epsilon_factor, identity_signal, stabilize

LOW = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *LOW]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_stabilize_moves_away_from_zero() -> None:
    z = double(-2.0, -1e-9, -0.0, 0.0, 1e-9, 2.0)
    expected = double(-2.5, -1e-9 - 0.5, 0.5, 0.5, 1e-9 + 0.5, 2.5)
    assert torch.equal(stabilize(z, 0.5), expected)


def test_stabilize_with_nothing_changes_nothing() -> None:
    z = double(-2.0, 0.0, 3.0)
    assert torch.equal(stabilize(z, 0.0), z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stabilize_keeps_shape_and_dtype(dtype: torch.dtype) -> None:
    for shape in ((), (0, 3), (2, 3)):
        found = stabilize(torch.zeros(shape, dtype=dtype), 0.5)
        assert (found.shape, found.dtype) == (shape, dtype)
        assert bool((found == 0.5).all())


@pytest.mark.parametrize("epsilon", [1e-9, 1e-6, 0.1, 2.0])
def test_epsilon_factor_is_the_formula(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    s, z = (torch.randn(200, dtype=torch.float64, generator=generator) for _ in range(2))
    z[:3] = double(0.0, -0.0, 1e-12)
    torch.testing.assert_close(epsilon_factor(s, z, epsilon), s * z / stabilize(z, epsilon), rtol=0, atol=1e-14)


def test_epsilon_factor_lets_nothing_through_a_zero() -> None:
    found = epsilon_factor(double(3.0, -3.0), double(0.0, -0.0), 1e-6)
    torch.testing.assert_close(found, double(0.0, 0.0), rtol=0, atol=1e-15)


def test_epsilon_factor_at_infinity_lets_all_through() -> None:
    s, z = double(3.0, -2.0), double(math.inf, -math.inf)
    assert torch.equal(epsilon_factor(s, z, 0.5), s)
    assert bool((s * z / stabilize(z, 0.5)).isnan().all())  # the plain formula cannot


def test_epsilon_factor_without_epsilon_is_the_signal() -> None:
    s = double(3.0)
    assert epsilon_factor(s, double(0.0), 0) is s


def test_epsilon_factor_leaves_its_arguments() -> None:
    s, z = double(3.0, -1.0), double(-2.0, 4.0)
    epsilon_factor(s, z, 0.5)
    assert s.tolist() == [3.0, -1.0] and z.tolist() == [-2.0, 4.0]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_epsilon_factor_in_low_precision(dtype: torch.dtype) -> None:
    s = torch.tensor([1.0, -3.0, 2.0, 1.0, 1.0, 3.0], dtype=dtype)
    z = torch.tensor([0.5, -0.25, 0.0, 1.0, 2.0**-10, -(2.0**-7)], dtype=dtype)
    found = epsilon_factor(s, z, 0.125)
    assert found.dtype == dtype
    exact = s.double() * z.double() / stabilize(z.double(), 0.125)
    assert torch.equal(found, exact.float().to(dtype))  # one rounding, not three


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_small_epsilon_survives_low_precision(dtype: torch.dtype) -> None:
    s, z = torch.ones(1, dtype=dtype), torch.full((1,), 1e-6, dtype=dtype)
    assert epsilon_factor(s, z, 1e-6).item() == pytest.approx(0.5, rel=0.05)


def test_identity_signal_hands_the_reward_on() -> None:
    s, x, z = double(2.0, -1.0), double(4.0, -0.5), double(3.0, 7.0)
    assert torch.equal(identity_signal(s, x, z, 0.0) * x, s * z)
    torch.testing.assert_close(identity_signal(s, x, z, 0.1), s * z / stabilize(x, 0.1), rtol=1e-15, atol=0)


def test_identity_signal_at_zero() -> None:
    s, x, z = double(2.0, 2.0, 2.0), double(0.0, -0.0, 1.0), double(3.0, 3.0, 3.0)
    assert identity_signal(s, x, z, 0.0).tolist() == [0.0, 0.0, 6.0]
    assert identity_signal(s, x, z, 0.5).tolist() == [12.0, 12.0, 4.0]


def test_identity_signal_of_a_zero_activation_is_zero() -> None:
    assert identity_signal(double(2.0), double(5.0), double(0.0), 0.5).tolist() == [0.0]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_identity_signal_in_low_precision(dtype: torch.dtype) -> None:
    s, x, z = (torch.tensor(v, dtype=dtype) for v in ([2.0, 1.0], [0.0, -0.75], [1.0, 0.375]))
    found = identity_signal(s, x, z, 0.125)
    assert found.dtype == dtype
    exact = s.double() * z.double() / stabilize(x.double(), 0.125)
    assert torch.equal(found, exact.float().to(dtype))
