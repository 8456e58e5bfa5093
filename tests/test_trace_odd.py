"""Models with odd control flow: each way of tracing gives autograd's gradients, or says why it cannot."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import TraceError
from lfpgraph.graph.calls import state_tensor
from lfpgraph.graph.graph import module_path, source_line
from lfpgraph.tracing.tracer import trace

from .support.helpers import assert_made, true_gradient


class Odd(nn.Module):
    """A linear layer before and after something odd."""

    def __init__(self, odd: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.zeros(()))
        self.odd = odd

    def forward(self, x: Tensor) -> Any:
        return self.last(self.odd(self, self.first(x)))


def experts(self: Odd, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(2):
        chosen = ((x[:, 0] > 0).long() == i).nonzero()[:, 0]
        out[chosen] = x[chosen] * (i + 1) * self.scale
    return out


def branch(self: Odd, x: Tensor) -> Tensor:
    return x * self.scale if x.sum().item() > 0 else -x * self.scale


def lengths(self: Odd, x: Tensor) -> Tensor:
    sizes = torch.tensor([2, x.shape[0] - 2]).tolist()
    return torch.cat([part * self.scale for part in x.split(sizes)])


def loop(self: Odd, x: Tensor) -> Tensor:
    for _ in range(int(x.detach().abs().max()) + 1):
        x = torch.tanh(x * self.scale)
    return x


def masked(self: Odd, x: Tensor) -> Tensor:
    return x + (x * self.scale)[x > 0].sum()


def passing_through(self: Odd, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.to(x.dtype)
        weight = y.abs().mean()
    return x * self.scale * weight


def detached_in_place(self: Odd, x: Tensor) -> Tensor:
    y = (x * 2).detach()
    y += self.scale
    return x + y


def counting(self: Odd, x: Tensor) -> Tensor:
    self.calls += 1
    return x * self.scale + self.calls


def in_place_dropout(self: Odd, x: Tensor) -> Tensor:
    return F.dropout(x * self.scale, 0.5, inplace=True)


def random_branch(self: Odd, x: Tensor) -> Tensor:
    return F.dropout(x * self.scale, 0.5) if x.sum() < 1e9 else x


def checkpointed(self: Odd, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(lambda y: torch.tanh(y * self.scale), x, use_reentrant=False)


def routed(self: Odd, x: Tensor) -> Tensor:
    """Rows chosen by value go a way of their own, if there are any: how routers of experts are written."""
    out = torch.zeros_like(x)
    for k in range(3):
        rows = torch.nonzero(x.argmax(1) == k).squeeze(1)
        if rows.numel():
            out.index_add_(0, rows, x[rows] * self.scale * (k + 1))
    return out


def selected(self: Odd, x: Tensor) -> Tensor:
    mask = x > 0.1
    rows, columns = torch.where(mask)
    kept = (x * self.scale)[mask] + torch.masked_select(x, mask) * self.scale[columns]
    spread = torch.zeros_like(x).index_put((rows, columns), kept)
    return spread if len(rows) > 2 else x * self.scale


EXPORTED = [experts, masked, passing_through, detached_in_place, counting, in_place_dropout, checkpointed]
RECORDED = [branch, lengths, loop, random_branch, routed, selected]


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    out = model(x)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CASES = [(odd, "live") for odd in (*EXPORTED, *RECORDED)] + [(odd, "static") for odd in EXPORTED]


@pytest.mark.parametrize(("odd", "engine"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_gradient_is_autograd(odd: Callable[[Odd, Tensor], Tensor], engine: str) -> None:
    """Also at the next step and on other numbers, which may take another way."""
    torch.manual_seed(0)
    model = Odd(odd).double()
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    for step in range(2):
        x = torch.randn(6, 4, dtype=torch.float64)
        expected, wanted = gradients(model, x)
        found, grads = gradients(twin, x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert set(grads) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(grads[name], value, rtol=1e-10, atol=1e-12)
        assert torch.equal(model.calls, twin.calls), f"step {step}"


@pytest.mark.parametrize("odd", RECORDED, ids=lambda f: f.__name__)
def test_refused_without_fallback(odd: Callable[[Odd, Tensor], Tensor]) -> None:
    if odd is lengths:
        pytest.skip("the lengths do not come from the data, so torch.export takes them")
    with pytest.raises(TraceError, match="retrace"):
        trace(Odd(odd), torch.randn(6, 4))


class Twofaced(nn.Module):
    """Takes another way while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if torch.compiler.is_exporting() else self.layer(x) * 2


def test_wrong_graph_is_noticed() -> None:
    model, x = Twofaced(), torch.randn(2, 3)
    with pytest.raises(TraceError, match="gives other outputs"):
        trace(model, x)
    graph = trace(model, x, fallback="retrace")
    assert graph.tracer == "values"
    out = lfpgraph.wrap(copy.deepcopy(model), engine="live")(x)
    torch.testing.assert_close(out, model(x))


def test_random_outputs_are_no_wrong_graph(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers drawn in another order are not held against a graph."""

    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            first, second = torch.rand_like(x), torch.rand_like(x)
            return self.layer(x) + (first - 2 * second if torch.compiler.is_exporting() else second - 2 * first)

    with caplog.at_level(logging.WARNING, "lfpgraph"):
        graph = trace(Noise(), torch.randn(2, 3))
    assert graph.tracer == "export" and "this may be chance" in caplog.text


def test_recording_draws_nothing_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = lfpgraph.wrap(Odd(branch))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model(torch.randn(4, 4).abs())
    torch.manual_seed(5)
    torch.randn(4, 4)
    assert not torch.equal(before, torch.get_rng_state())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    model(torch.randn(4, 4).abs())
    assert torch.equal(after, torch.get_rng_state())
    assert capfd.readouterr().err == ""


def test_padding_keeps_sizes_open(engine: str) -> None:
    """One trace or plan serves other sizes."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3))
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 8, 8)
        for one in (model, twin):
            one.zero_grad()
            one(x).square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(q.grad, p.grad)
    assert_made(twin, engine)


def test_fixed_sizes_where_open_ones_fail(caplog: pytest.LogCaptureFixture) -> None:
    """A rule that takes no open sizes costs a trace for each size, and is told of."""

    def concrete(node: Any, s: Tensor, x: Tensor) -> Any:
        if isinstance(s.shape[0], torch.SymInt):
            raise RuntimeError("expected to contain only concrete integers")
        return node.vjp(s)

    rules = lfpgraph.get_composite("lfp-epsilon").override("1", handlers={torch.ops.aten.relu.default: concrete})
    twin = lfpgraph.wrap(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), rules, engine="static")
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        for batch in (2, 3, 2):
            twin(torch.randn(batch, 3)).square().sum().backward()
    assert "for these sizes alone" in caplog.text and lfpgraph.explain_wrap(twin).traces == 2


class Nested(nn.Module):
    """A part of its own called `model`, and one whose forward branches on data under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.odd = Odd(branch)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = self.model(x).mean()
        return self.odd(self.model(x) * weight)


def test_recorded_nodes_know_their_place() -> None:
    """Module path and source line, as for an exported model; in no_grad regions too. So overrides by path apply."""
    graph = trace(Nested(), torch.randn(6, 4), fallback="retrace")
    assert graph.tracer == "values"
    found = [(str(n.target), module_path(n), source_line(n)) for n in graph.operations()]
    linear = [path for op, path, _ in found if op == "aten.linear.default"]
    assert linear == ["model.0", "model.0", "odd.first", "odd.last"]
    assert {path for op, path, _ in found if op == "aten.gelu.default"} == {"model.1"}
    means = [(path, line.split(":")[0]) for op, path, line in found if op == "aten.mean.default"]
    assert means == [("", "test_trace_odd.py")]
    assert all(line for _, _, line in found)


def test_no_grad_regions_know_their_place() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = x + torch.sin(self.model(x))
            return self.model(x)

    graph = trace(Region(), torch.randn(6, 4))
    assert graph.tracer == "export"
    assert [module_path(n) for n in graph.operations() if str(n.target) == "aten.linear.default"] == ["model", "model"]
    sine = next(n for n in graph.operations() if str(n.target) == "aten.sin.default")
    assert source_line(sine).startswith("test_trace_odd.py:")


def test_a_weight_made_of_tensors_is_found_by_its_traced_names() -> None:
    """torch.export takes a quantised weight apart; what it names is found in the model, or an error of ours is raised."""
    from torch.testing._internal.two_tensor import TwoTensor

    parts = torch.ones(2), torch.zeros(2)
    state = {"a.weight": TwoTensor(*parts)}
    assert all(state_tensor(state, f"a.parametrizations.weight.original{i}") is parts[i] for i in (0, 1))
    for name in ("a.parametrizations.weight.original2", "b.weight", "a.parametrizations.bias.original0"):
        with pytest.raises(TraceError, match="has not under that name"):
            state_tensor(state, name)


def test_a_weak_proxy_is_no_module() -> None:
    """Lightning's modules know their trainer by one; it has no hash."""
    model, other = lfpgraph.wrap(nn.Sequential(nn.Linear(3, 3))), nn.Linear(2, 2)
    vars(model)["trainer"] = weakref.proxy(other)
    model(torch.ones(2, 3)).sum().backward()
