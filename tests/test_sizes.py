"""One wrap, many sizes: which calls share a trace or a plan."""

from __future__ import annotations

import copy
import logging
from importlib.metadata import version

import pytest
import torch
import torch.nn.functional as F
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph

from .support.helpers import assert_made, assert_same, gradients, lfp, true_gradient


class Lonely(nn.Module):
    """Takes another way for a batch of one, as a model may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).tanh() if x.shape[0] == 1 else self.second(x).sigmoid()


@pytest.mark.parametrize("order", [(1, 1, 5, 1, 2), (5, 1, 2, 1)])
def test_a_batch_of_one_of_its_own(order: tuple[int, ...], caplog: pytest.LogCaptureFixture, engine: str) -> None:
    model = Lonely()
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    with caplog.at_level(logging.WARNING, logger="lfpgraph"):
        for n in order:
            x = torch.randn(n, 4, dtype=torch.float64)
            expected, found = gradients(model, x), gradients(twin, x)
            assert_same(found, _nonzero(expected, found) if engine == "static" else expected, 1e-10)
    assert_made(twin, engine, 2)
    assert engine == "live" or "batch of one" in caplog.text or "again" in caplog.text


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("order", [(3, 0, 2, 0), (0, 3, 0)], ids=["later", "first"])
def test_a_batch_of_none_at_a_batch_norm(order: tuple[int, ...], training: bool, engine: str) -> None:
    """torch takes other operations then; the backward kernel of the usual one divides by zero and ends the process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    model.train(training)
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    for n in order:
        x = torch.randn(n, 1, 6, 6, dtype=torch.float64)
        assert_same(gradients(twin, x), gradients(model, x), 1e-10)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


def test_a_batch_of_none_needs_no_trace_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).double()
    twin = lfpgraph.wrap(copy.deepcopy(model), "gradient", engine="static")
    for n in (0, 3, 1, 0):
        x = torch.randn(n, 4, dtype=torch.float64)
        assert_same(gradients(twin, x), gradients(model, x), 1e-10)
    assert_made(twin, "static", 1)
    assert not [record for record in caplog.records if record.name == "lfpgraph"]


@pytest.mark.parametrize("first", [0, 2])
def test_no_rows_are_explained_by_each_rule(first: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()
    for composite in ("gradient-x-input", "integrated-gradients", "attnlrp", "epsilon-plus"):
        for n in (first, 0):
            assert lfpgraph.attribute(model, torch.randn(n, 1, 6, 6), 1, composite).shape == (n, 1, 6, 6)


def _nonzero(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Autograd gives None to what is not used; the static engine may give zeros."""
    return {name: expected.get(name, torch.zeros_like(value)) for name, value in found.items()}


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_batches_and_lengths_of_a_transformer(name: str, engine: str) -> None:
    """From 1 x 8 to 64 x 32 on at most two traces or plans, equal to autograd.

    Two more plans for BERT at its greatest length, where Python's `x[:, :n]` takes everything: that is another operation. The
    first transformers 5 cut GPT-2's mask in the same way.
    """
    model, batch = build_tiny(name, layers=1)
    model.double().eval()
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    torch.manual_seed(0)
    for n, length in ((2, 8), (1, 8), (64, 16), (1, 32), (7, 32)):
        ids = torch.randint(20, (n, length))
        assert_same(gradients(twin, input_ids=ids), gradients(model, input_ids=ids), 1e-9, 1e-12)
    made = lfpgraph.explain_wrap(twin)
    cuts = name == "bert" or version("transformers").startswith("5.0.")
    assert 1 <= made.traces + made.plans <= (4 if cuts and engine == "live" else 2), made


class Rows(nn.Module):
    """Takes a batch of two row by row, with a norm written out; a trace knows of the second row that `min(2, n) - 1` is 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 4).double(), nn.Linear(3, 4).double(), nn.Linear(4, 3).double()

    def row(self, h: Tensor) -> Tensor:
        h = h - h.mean(-1, keepdim=True)
        return self.head(nn.functional.gelu(h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.a(x)
        return torch.cat([self.row(a[i : i + 1] + self.b(y[i : i + 1])) for i in range(2)])


def test_rows_taken_one_by_one_are_alike() -> None:
    x, y = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    live, static = (lfp(Rows(), x, y, engine=engine) for engine in ("live", "static"))
    assert_same(static, live, 1e-9)


def test_a_program_for_a_batch_of_one_fits_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    """An instance norm takes a batch for channels, so that a program traced with two rows is wrong for one row alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, affine=True), nn.Conv1d(3, 2, 1)).double()
    twin = lfpgraph.wrap(copy.deepcopy(model), engine="live")
    lfpgraph.wrap(model, engine="static")
    for _ in range(3):
        for net in (model, twin):
            net.zero_grad()
            net(torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 2, 8)).square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(p.grad, q.grad)
    assert lfpgraph.explain_wrap(model).traces == 1
    assert "again" not in caplog.text


class TwoWays(nn.Module):
    def __init__(self, way: nn.Module) -> None:
        super().__init__()
        self.first, self.way, self.last = nn.Linear(5, 4), way, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.way(h, h.tanh()) if isinstance(self.way, nn.Bilinear) else self.way(h))


@pytest.mark.parametrize("composite", ["gradient", "lfp", "lfp-epsilon", "epsilon-plus"])
@pytest.mark.parametrize(
    "way",
    [nn.Bilinear(4, 4, 4), nn.Bilinear(4, 4, 4, bias=False), nn.Hardshrink(0.1), nn.Softshrink(0.1)],
    ids=str,
)
def test_what_torch_cannot_differentiate_with_open_sizes_keeps_them_open(way: nn.Module, composite: str) -> None:
    torch.manual_seed(0)
    plain = TwoWays(copy.deepcopy(way)).double()
    live, static = (lfpgraph.wrap(copy.deepcopy(plain), composite, engine=engine) for engine in ("live", "static"))
    for rows in ((4,), (7, 3), (2, 5), (1,)):
        x = torch.randn(*rows, 5, dtype=torch.float64)
        for model in (live, static):
            model.zero_grad()
            model(x).square().sum().backward()
        for p, q in zip(static.parameters(), live.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    assert lfpgraph.explain_wrap(static).traces == 2  # one for each number of dimensions


RESIZES = {
    "nearest": lambda h: F.interpolate(h, scale_factor=2),
    "to a size": lambda h: F.interpolate(h, size=(7, 5)),
    "bilinear": lambda h: F.interpolate(h, scale_factor=1.5, mode="bilinear", align_corners=True),
    "bicubic": lambda h: F.interpolate(h, scale_factor=2, mode="bicubic"),
    "linear": lambda h: F.interpolate(h.flatten(2), scale_factor=2, mode="linear").unsqueeze(1),
    "pad": lambda h: F.pad(h.flatten(2), (3, -1)).unsqueeze(1),
    "unfold": lambda h: F.unfold(h, 3, padding=1).unsqueeze(1),
    "convolved by fft": lambda h: torch.fft.irfft(torch.fft.rfft(h, n=9) * torch.fft.rfft(h.tanh(), n=9), n=9),
}


class Resized(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.way = nn.Conv2d(2, 4, 3, padding=1), way

    def forward(self, x: Tensor) -> Tensor:
        return RESIZES[self.way](self.first(x))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("composite", ["gradient", "lfp"])
@pytest.mark.parametrize("way", RESIZES)
def test_what_kernels_ask_the_number_of_stays_open(way: str, composite: str) -> None:
    torch.manual_seed(0)
    plain = Resized(way).double()
    live, static = (lfpgraph.wrap(copy.deepcopy(plain), composite, engine=engine) for engine in ("live", "static"))
    for rows in (3, 5, 4, 2):
        x = torch.randn(rows, 2, 6, 4, dtype=torch.float64)
        for model in (live, static):
            model.zero_grad()
            model(x).square().sum().backward()
        for p, q in zip(static.parameters(), live.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    assert lfpgraph.explain_wrap(static).traces == 1


def test_a_program_interpolates_by_the_operation_that_does_so() -> None:
    """Written out, it would be thirty operations on indices."""
    model = lfpgraph.wrap(Resized("bilinear"), engine="static")
    for _ in range(2):
        with torch.profiler.profile() as ran:
            model(torch.randn(3, 2, 6, 4)).square().sum().backward()
    names = {event.key for event in ran.key_averages()}
    assert {"aten::upsample_bilinear2d", "aten::upsample_bilinear2d_backward"} <= names
    assert not [name for name in names if "index" in name]
