"""Small models for the tests of training loops, and comparisons of what they learn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.composites.composite import Composite

from .helpers import true_gradient

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Recurring(nn.Module):
    """Calls one of its modules twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.again = nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.last(F.relu(self.again(F.relu(self.again(hidden)))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, 16)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x)))))


class TwoOutputs(nn.Module):
    """Returns a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.left = nn.Linear(16, 4)
        self.right = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, int]]:
        hidden = F.relu(self.body(x))
        return {"left": self.left(hidden), "right": (self.right(hidden), 7)}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp, "smooth": smooth, "cnn": cnn, "normed": normed, "recurring": Recurring, "tied": Tied,
}  # fmt: skip


def example(name: str, batch: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    shape = (batch, 2, 8, 8) if name in ("cnn", "normed") else (batch, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twins(
    make: Callable[[], nn.Module],
    composite: str | Composite | None = None,
    dtype: torch.dtype = torch.float64,
    engine: str = "auto",
) -> tuple[nn.Module, nn.Module]:
    """A wrapped model and its plain copy; without a composite the wrapped one takes the true gradient."""
    torch.manual_seed(0)
    plain = make().to(dtype)
    chosen = true_gradient(engine) if composite is None else composite
    return lfpgraph.wrap(copy.deepcopy(plain), chosen, engine=engine), plain


def loss_of(out: Tensor) -> Tensor:
    """A loss whose gradient differs from sample to sample and from output to output."""
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view_as(out)
    return (out * out * weights).sum() + (out * weights).mean()


def assert_close(got: Tensor | None, want: Tensor | None, tolerance: float = 1e-10, what: str = "") -> None:
    """Largest difference relative to the largest value; a zero expectation would prove nothing."""
    assert got is not None and want is not None, what
    assert got.dtype == want.dtype and got.shape == want.shape, what
    assert want.abs().max() > 0, f"{what}: nothing to compare with"
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= tolerance, f"{what}: relative difference {error:.2e}"


def assert_same_grads(model: nn.Module, plain: nn.Module, tolerance: float = 1e-10, scaled: bool = False) -> None:
    """`.grad` of every parameter as in `plain`, or that times |w|."""
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        if not q.requires_grad:
            assert p.grad is None, name
            continue
        want = q.detach().abs() * q.grad if scaled else q.grad
        assert_close(p.grad, want, tolerance, name)
