"""Random graphs of all kinds of operations: a live run gives the feedback that the walk over a trace gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lfpgraph
from lfpgraph.tracing.tracer import trace

from .support.fuzz import random_module
from .support.fuzz_wide import COMPLEX, WIDE
from .support.seeds import check_all
from .support.together import Case, by_writes
from .support.ways import compare, walked, wrapped

COMPOSITES = ("lfp-epsilon", "attnlrp", "lfp-gamma", "epsilon-plus")
QUICK, REST, MANY = range(40), range(40, 64), 400


def check(*seeds: int, length: int = 12, composites: tuple[str, ...] = COMPOSITES) -> None:
    """Random graphs under some composites; those of several seeds are traced as one.

    Raises:
        AssertionError: with the seed and the module's source.
    """
    for joint in by_writes([_case(seed, length) for seed in seeds]):
        given = joint.module, joint.inputs, joint.signals
        graph = joint.trace()
        for composite in composites:
            try:
                expected = walked(graph, *given, composite)
                joint.compare(composite, wrapped(*given, composite, "live"), expected)
            except Exception as error:
                raise AssertionError(f"{composite}: {type(error).__name__}: {error}\n{joint.source}") from error


def _case(seed: int, length: int = 12) -> Case:
    module, inputs, source = random_module(seed, length, (*WIDE, COMPLEX) if seed % 3 == 2 else WIDE, trainable=True)
    generator = torch.Generator().manual_seed(seed)
    outputs = copy.deepcopy(module)(*inputs)
    return Case(
        seed, module, inputs, [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outputs], source
    )


# What once differed: a composite, and lines that make `v` of x and y.
MENDED = {
    "mask of sorted values": ("lfp-epsilon", "v = torch.where(y.sort(0).values > 0, 1.0, -1.0) * y"),
    "view undone, read twice": (
        "lfp-epsilon",
        "t = y * y; u = t[None]; v = torch.cat([t + u[0, 0], torch.atan(u)[0]])",
    ),
    "view undone, two forms": (
        "lfp-epsilon",
        "t = y * y; u = t[None]; v = torch.cat([t + u[0, 0], u[0] * 2, (u.atan() + u)[0]])",
    ),
    "parts of an operation": ("lfp-epsilon", "v = torch.addcmul(x, x, y).tanh() + torch.lerp(x, y, 0.3)"),
    "parts written in place": ("lfp-epsilon", "t = x * y; t.lerp_(y, 0.3); v = t.addcdiv_(x, y.abs() + 1)"),
    "sum written to a view": ("lfp-epsilon", "t = x * 2; t[0].add_(y[0]); v = t.tanh() + t"),
    "activation written to a view": ("epsilon-plus", "t = x * y; u = t[:, 1:]; u.sigmoid_(); v = t * u.sum()"),
    "write to all of a tensor": ("lfp-epsilon", "t = x.clone(); t.transpose(0, -1).add_(1); v = t.tanh()"),
    "write to a part that is all": ("lfp-epsilon", "t = x[:, :1].clone(); t[:, 0].mul_(y[:, 0]); v = t.sigmoid()"),
    "statistics that count as constants": (
        "attnlrp",
        "v = (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1)",
    ),
    "a comparison read twice": ("lfp-epsilon", "m = x > y; v = torch.where(m, x, y) * torch.where(m, y, x * 2)"),
    "a divisor that takes nothing": ("lfp-epsilon", "t = x * y; u = t / 2; v = u * 3 + x / (u.abs() + 1)"),
    "kron of what is then written to": ("lfp-epsilon", "t = x * y; v = torch.kron(x, t); t.T[0] += t.mean()"),
    "a write that leaves nothing": (
        "epsilon-plus",
        "t = x * x; u = t.mean().view(-1).clone(); u[:1].zero_(); v = t.tanh() + u",
    ),
    "a part that nobody reads": (
        "epsilon-plus",
        "v = F.cosine_similarity(F.embedding(torch.tensor([0, 2]), self.w), x[0])",
    ),
    "a mask of the greatest": ("lfp-epsilon", "v = (x >= x.amax(-1, keepdim=True)).double() * y"),
    "one_hot of the greatest": ("lfp-epsilon", "v = F.one_hot(x.argmax(-1), 4).double() + x"),
    "what is computed for nothing": (
        "lfp-epsilon",
        "v = F.mish(x); t = ((v > 0).double() * v).clone(); t[t > 0] = 0.5",
    ),
    "written and computed for nothing": ("lfp-epsilon", "v = F.mish(x); t = torch.zeros_like(x); t[0] = v[0].tanh()"),
    "a mask read by what is computed for nothing": (
        "lfp-epsilon",
        "u = F.one_hot(x.argmax(-1), 4).double() + x; v = u * 2; h = (torch.zeros(1, 4, 1).to(u),) * 2; "
        "torch.lstm(u[None], h, (self.w, self.w[:, :1]), False, 1, 0.0, False, False, False)",
    ),
    "a norm copied to all rows": ("lfp-epsilon", "t = y.clone(); t.copy_(x.norm(dim=0, keepdim=True)); v = t * y"),
    "a mean copied to all rows": (
        "epsilon-plus",
        "m = torch.empty_like(x); m.copy_(x.mean(-1, keepdim=True)); v = (x - m) / (x.var(-1, keepdim=True) + 1).sqrt()",
    ),
    "complex slices written": (
        "lfp-epsilon",
        "c = torch.fft.fft(x); o = c * 0; o[:, 1:] = c[:, 1:]; v = torch.fft.ifft(o).real",
    ),
    "complex numbers have no sign": ("lfp-gamma", "v = torch.fft.ifft(torch.fft.fft(x) @ (self.w * (1 + 1j))).real"),
    "complex numbers in a first layer": ("flat", "v = torch.fft.ifft(torch.fft.fft(x) @ (self.w * (1 + 1j))).real"),
    "a view of what is then written to": ("lfp-epsilon", "t = torch.atan(x * y); v = t.flatten(); t.sub_(0.2)"),
    "dropout that drops nothing": (
        "lfp-epsilon",
        "t = F.dropout(x * 1, 0.5, False) + self.w[:1, 0]; v = (t.sign() + t).tanh()",
    ),
    "the same, written": (
        "lfp-epsilon",
        "t = F.dropout(x * 1, 0.5, False, True) + self.w[:1, 0]; v = (t.sign() + t).tanh()",
    ),
    "a mask written row by row": ("attnlrp", "m = torch.zeros_like(x); m[0] = 1; v = F.cosine_similarity(y, x * m, 0)"),
    "a row of what is then written to": (
        "attnlrp",
        "m = torch.ones_like(x[0]); w = m[1:]; m[2] = 0; v = F.normalize(x[1, 1:] * w, dim=0)",
    ),
    "an input that is not used": ("lfp-epsilon", "v = F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), self.w) * 2"),
}


@pytest.mark.parametrize("name", MENDED)
def test_mended(name: str) -> None:
    composite, line = MENDED[name]
    torch.manual_seed(0)
    names = {"torch": torch, "F": torch.nn.functional, "nn": torch.nn}
    exec(f"class Net(nn.Module):\n    def forward(self, x, y):\n        {line}\n        return (v,)", names)
    module = names["Net"]()  # type: ignore[operator]
    module.w = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    inputs = (torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64))
    signals = [torch.randn_like(out) for out in module(*inputs)]
    expected = walked(trace(module, inputs, dynamic=False), module, inputs, signals, composite)
    assert expected
    compare(name, wrapped(module, inputs, signals, composite, "live"), expected)


@pytest.mark.parametrize("seed", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in REST)])
def test_random_graph(seed: int) -> None:
    check(seed, length=6, composites=(COMPOSITES[seed % len(COMPOSITES)],))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1000 + MANY, 100))
def test_many_random_graphs(start: int) -> None:
    """A hundred at a time; every failure of the hundred is told."""
    check_all(check, start)


def test_group_norm_of_a_signal_that_lies_transposed() -> None:
    """Its kernel reads memory as it lies; with no epsilon, nothing before it brings the signal in order."""

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
            return (F.silu(F.group_norm(x, 2, self.w)).flatten(2).mT @ y,)

    torch.manual_seed(0)
    module = Net()
    module.w = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    inputs = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    signals = [torch.randn_like(out) for out in module(*inputs)]
    expected = walked(trace(module, inputs, dynamic=False), module, inputs, signals, "lfp-0")
    for engine in ("static", "live"):
        compare(engine, wrapped(module, inputs, signals, "lfp-0", engine), expected)


def test_what_fused_kernels_read_may_lie_otherwise_than_traced() -> None:
    """The kernel of attention reads rows of its arguments as they lie, and a channels-last image is drawn for as it lies."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm, self.head = (
                torch.nn.Conv2d(4, 12, 1),
                torch.nn.GroupNorm(2, 4),
                torch.nn.Conv2d(4, 3, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(F.dropout(self.norm(x))).reshape(len(x), 1, 12, -1).mT.chunk(3, 3)
            return self.head(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))

    torch.manual_seed(0)
    plain, x = Net().double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    model = lfpgraph.wrap(copy.deepcopy(plain), "gradient", engine="static")
    for layout in (torch.channels_last, torch.contiguous_format, torch.channels_last):
        found = []
        for net in (plain, model):
            torch.manual_seed(1)
            net.zero_grad()
            out = net(x.contiguous(memory_format=layout))
            if layout is torch.contiguous_format:  # torch's own backward crashes for the other
                out.square().sum().backward()
            found.append([out, *(p.grad for p in net.parameters() if p.grad is not None)])
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
