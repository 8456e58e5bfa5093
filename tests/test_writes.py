"""Writes in place that tracing takes away by itself: to views of all kinds, without torch's second trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lfpgraph.tracing.tracer import trace

from .support.ways import compare, expected, walked, wrapped

# Lines that make `v` of x and y, both [4, 4].
LINES = {
    "chunk": "m = torch.ones_like(x); a, b = m.chunk(2, 1); b.mul_(3); a.add_(1); v = x * m",
    "split": "m = torch.ones_like(x); m.split(3)[1].mul_(3); v = x * m",
    "split by sizes": "m = torch.ones_like(x); m.split([1, 2, 1], 1)[1].mul_(3).tanh_(); v = x * m",
    "tensor_split": "t = x * 1; t.tensor_split((1, 3), -1)[-1].mul_(y[:, 3:]); v = t.sin()",
    "unbind": "m = torch.ones_like(x); m.unbind(1)[2].mul_(3); m.unbind()[-1].mul_(5); v = x * m",
    "narrow": "t = x * 1; t.narrow(1, 1, 2).mul_(y[:, :2]); v = t.sin()",
    "diagonal": "t = x * 1; t.diagonal(1).mul_(y[0, :3]); v = t.sin()",
    "movedim": "t = (x * 1).unflatten(1, (2, 2)); t.movedim(0, -1)[1].mul_(y[:2]); v = t.sin()",
    "transposed": "t = x * 1; t.mT[0].mul_(y[0]); t.T[1].mul_(y[1]); v = t.sin()",
    "permuted": "t = (x * 1).reshape(2, 2, 4); t.permute(2, 0, 1)[1].mul_(y[:2, :2]); v = t.sin()",
    "turned": "t = x * 1; u = t[1:]; t.unsqueeze_(1); t.mul_(y[:, None]); t.squeeze_(1).t_(); t[0].sin_(); v = t * u.sum()",
    "transposed itself": "t = x * 1; t.transpose_(0, 1); t[:2].mul_(y[:2]); v = t.sin()",
    "contiguous": "t = x * 1; u = t.contiguous(); u[0].mul_(y[0]); v = t.sin()",
    "to": "t = x * 1; t.to(x.dtype)[0].mul_(y[0]); v = t.sin()",
    "of another dtype": "t = x.float(); t[0].mul_(y[0]); t.add_(y); v = t",
    "broadcast": "t = x * 1; a, b = torch.broadcast_tensors(t, y[:1]); t.mul_(y); v = a * b",
    "a constant": "t = x * torch.tensor([1.0, 2, 3, 4]).double(); t[0, 1:3] = t[2, :2] * 2; v = t.sin()",
    "views of views": "t = x * 1; u = t[0]; w = u[1:]; t.mul_(y); w.sin_(); u.mul_(2); v = t * w.sum()",
    "detached before": "t = x * 1; d = t.detach(); t.mul_(y); v = t * d",
    "viewed": "t = x * 1; t.view(2, 8)[1].mul_(y.flatten()[:8]); v = t.sin()",
    "read before": "t = x * 1; u = t[0] * 2; t.reshape(-1)[:2].copy_(y[0, :2]); v = t * u",
    "flat already": "m = (x * 2).flatten().tanh(); t = m[:1] * m; u = t.flatten(); t.sub_(0.2); v = u.tanh()",
    "a power": "t = x * 1; t.pow_(2); t[0].mul_(y[0]); v = t * y",
    "filled": "t = x * 1; t[:, 0].zero_(); t[:, 1].fill_(0.5); v = t.sin()",
    "a buffer": "self.s[1:].add_(x[0].detach()); self.s.mul_(0.5); v = x * self.s[1]",
}


def net(line: str) -> nn.Module:
    names = {"torch": torch, "nn": nn, "unseen": torch.no_grad()(lambda write: write())}
    exec(f"class Net(nn.Module):\n    def forward(self, x, y):\n        {line}\n        return (v,)", names)
    module = names["Net"]()  # type: ignore[operator]
    module.register_buffer("s", torch.ones(3, 4, dtype=torch.float64))
    return module  # type: ignore[no-any-return]


def given(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


@pytest.mark.parametrize("name", LINES)
def test_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is autograd's, the feedback that of a live run, and buffers end as they do in the model."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", never)
    module, inputs, line = net(LINES[name]), given(), LINES[name]
    generator = torch.Generator().manual_seed(1)
    signals = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in net(line)(*inputs)]
    graph = trace(module, inputs, dynamic=False)  # and compares outputs and buffers
    assert [node.meta["val"].dtype for node in graph.user_output_nodes] == [s.dtype for s in signals]
    compare("gradient", walked(graph, module, inputs, signals, "gradient"), expected(module, inputs, signals), line)
    module.w = nn.Parameter(torch.ones(()))
    feedback = walked(graph, module, inputs, signals, "lfp-epsilon")
    compare("live", wrapped(module, inputs, signals, "lfp-epsilon", "live"), feedback, line)


# What is left to torch: a write to what others see detached, numbers that are drawn, parts of which nothing is known.
LEFT = {
    "detached": "t = x * 1; u = t[0]; t.detach_(); v = u * y",
    "drawn": "t = x * 1; t.bernoulli_(1.0); v = t * y",
    "imaginary": "t = torch.fft.fft(x); t.imag.mul_(2); v = t.real * y",
}


@pytest.mark.parametrize("name", LEFT)
def test_writes_left_to_torch(name: str) -> None:
    module, inputs = net(LEFT[name]), given()
    signals = [torch.ones_like(out) for out in module(*inputs)]
    want = expected(module, inputs, signals)
    graph = trace(module, inputs, dynamic=False)
    compare("gradient", walked(graph, module, inputs, signals, "gradient"), want)


# Writes that autograd does not see: the values change, and the way back stays as it was.
UNSEEN = {
    "detached": "t = x * 1; t.detach().clamp_(-0.5, 0.5); v = t.relu() * y",
    "a part of what is detached": "t = x * 1; d = t.detach(); d[:, :2].fill_(0.3); v = t.sin() * y + d",
    "without gradients": "t = x * 2; unseen(lambda: t.mul_(0.5).add_(1)); v = t.relu() + y * t",
    "a part of it": "t = x * 2; unseen(lambda: t[1:].clamp_(-0.5, 0.5)); v = t.relu() + y",
    "seen through a view": "t = x * 2; u = t[:, 1:]; unseen(lambda: t.mul_(0.5)); v = u.relu() * y[:, 1:]",
    "rounded": "t = x * 3; unseen(lambda: t.copy_(t.round())); v = t.sigmoid() * y",
    "twice": "t = x * 3; unseen(lambda: t.add_(1)); t.mul_(y); t.detach().mul_(0.5); v = t.tanh()",
    "a mask": "t = x * 3; unseen(lambda: t.masked_fill_(t > 0, 0.3)); v = t.exp() * y",
    "drawn": "t = torch._standard_gamma(x.abs() + 1) / 2; t.detach().clamp_(min=3.0); v = t * y",
    "only read detached": "t = (x * 3).detach(); t.clamp_(0.1, 0.2); v = t * y",
    "returned": "t = x * 3; unseen(lambda: t.clamp_(-0.5, 0.5)); v = t",
}


@pytest.mark.parametrize("name", UNSEEN)
def test_writes_unseen(name: str) -> None:
    """Autograd's gradient, and one feedback live and from a trace."""
    module, inputs, line = net(UNSEEN[name]), given(), UNSEEN[name]
    torch.manual_seed(0)
    signals = [torch.randn(out.shape, dtype=out.dtype) for out in module(*inputs)]
    torch.manual_seed(0)
    want = expected(module, inputs, signals)
    graph = trace(module, inputs, dynamic=False)
    torch.manual_seed(0)
    compare("gradient", walked(graph, module, inputs, signals, "gradient"), want, line)
    module.w = nn.Parameter(torch.ones(()))
    for rules in ("lfp", "lfp-epsilon"):
        torch.manual_seed(0)
        feedback = walked(graph, module, inputs, signals, rules)
        torch.manual_seed(0)
        compare("live", wrapped(module, inputs, signals, rules, "live"), feedback, line)
