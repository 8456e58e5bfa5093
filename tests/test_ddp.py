"""DistributedDataParallel: two gloo processes do what one process does on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph

from .support.helpers import assert_made
from .support.processes import free_port, ranks

STEPS = 3
SHARD = 6
_kept: list[
    nn.Module
] = []  # to the end of a process: freed with its group, it may wait for threads that wait for Python's lock


def make_model() -> nn.Module:
    """The same CNN in every process; without batch norm, whose statistics are each rank's own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.GELU(),
        nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5),
    )  # fmt: skip


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(2 * SHARD, 1, 8, 8, generator=generator)
    return x, torch.randint(5, (2 * SHARD,), generator=generator)


def train(model: nn.Module, parameters: nn.Module, rows: slice) -> list[Tensor]:
    """Three steps of SGD on these rows of every batch; returns the weights."""
    optimizer = torch.optim.SGD(parameters.parameters(), lr=0.5, momentum=0.9)
    for step in range(STEPS):
        x, y = make_batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return [p.detach().clone() for p in parameters.parameters()]


def worker(rank: int, port: int, folder: str, engine: str) -> None:
    """One rank; writes its weights."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        model = lfpgraph.wrap(make_model(), "lfp-epsilon", engine=engine)
        parallel = nn.parallel.DistributedDataParallel(model)
        _kept.append(parallel)
        weights = train(parallel, model, slice(rank * SHARD, (rank + 1) * SHARD))
        assert_made(model, engine)
        torch.save(weights, Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference of any parameter relative to that parameter's largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_ranks_equal_one_process(tmp_path: Path, engine: str) -> None:
    ranks(worker, free_port(), str(tmp_path), engine)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))

    def alone(rows: slice, composite: str | None = "lfp-epsilon") -> list[Tensor]:
        model = make_model()
        return train(lfpgraph.wrap(model, composite, engine=engine) if composite else model, model, rows)

    joined = alone(slice(None))
    assert difference(first, joined) <= 1e-6
    # That means something only if the ranks had different work, and if feedback is not the gradient.
    assert difference(alone(slice(0, SHARD)), joined) > 1e-3
    assert difference(alone(slice(None), None), joined) > 1e-3
    assert difference([p.detach() for p in make_model().parameters()], joined) > 1e-3
