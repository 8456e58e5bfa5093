"""Fully sharded data parallel: a model, or its blocks wrapped by themselves, trains as on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lfpgraph

from .support.blocks import Deep
from .support.processes import free_port, ranks


def train(model: nn.Module, rows: slice) -> None:
    """Three steps of SGD on these rows of every batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x[rows]) ** 2).mean().backward()
        optimizer.step()


def make_model(regional: bool) -> Deep:
    """A model; without regional= one that has a matrix of zeros, which is to wake up, and rules for one block by its name."""
    torch.manual_seed(0)
    model = Deep().double().eval()
    if regional:
        return lfpgraph.wrap(model, "lfp", regional=True)  # type: ignore[return-value]
    nn.init.zeros_(model.blocks[0].narrow.weight)
    composite = lfpgraph.get_composite("lfp-epsilon").override("blocks.1.*", scale="signal")
    return lfpgraph.wrap(model, composite)  # type: ignore[return-value]


def worker(rank: int, port: int, folder: str, regional: bool) -> None:
    """One rank: each block and then the rest sharded over two; rank 0 writes the whole weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        model = make_model(regional)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        train(model, slice(4 * rank, 4 * rank + 4))
        weights = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
        if rank == 0:
            torch.save({"weights": weights, "traces": lfpgraph.explain_wrap(model).traces}, Path(folder) / "0.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("regional", [True, False])
def test_sharded_blocks_train_as_on_one_process(regional: bool, tmp_path: Path) -> None:
    ranks(worker, free_port(), str(tmp_path), regional)
    found = torch.load(tmp_path / "0.pt")
    assert found["traces"] == (3 if regional else 0)
    model, start = make_model(regional), make_model(regional)
    train(model, slice(0, 8))
    for (name, p), q in zip(model.named_parameters(), start.parameters()):
        moves = regional or name == "blocks.1.norm.bias"
        assert torch.equal(p, q) == (name.endswith("norm.bias") and not moves), name
        torch.testing.assert_close(
            found["weights"][name], p.detach(), rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def parallel(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


MADE_BEFORE = {
    "fully_shard": shard,
    "tensor parallel": parallel,
    "DDP": lambda model, mesh: DistributedDataParallel(model),
}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
@pytest.mark.parametrize("made", MADE_BEFORE)
def test_wrapped_after_it_was_distributed(made: str, composite: str, caplog: pytest.LogCaptureFixture) -> None:
    """By hand, with parameters that are distributed tensors, on one process: the feedback is the plain model's."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        found = []
        for make in (lambda model, mesh: model, MADE_BEFORE[made]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).double()
            model = lfpgraph.wrap(make(model, init_device_mesh("cpu", (1,))), composite)
            model(torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)).square().sum().backward()
            grads = [p.grad for p in model.parameters()]
            found.append([g.full_tensor() if isinstance(g, DTensor) else g for g in grads])
    finally:
        torch.distributed.destroy_process_group()
    assert caplog.records == []
    through_a_function = (
        made == "tensor parallel" and composite == "lfp-epsilon"
    )  # of its own, on which epsilon counts again
    torch.testing.assert_close(found[1], found[0], rtol=1e-3 if through_a_function else 1e-12, atol=1e-12)
