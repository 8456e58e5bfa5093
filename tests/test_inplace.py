"""The passes over static graphs: functional, and in place where nothing reads the old value."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import lfpgraph
from lfpgraph.errors import TraceError
from lfpgraph.passes.functional import make_functional
from lfpgraph.passes.inplace import raise_counters, write_in_place, write_statistics
from lfpgraph.wrapping.calls import wrapping_of

aten = torch.ops.aten
X = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)


class _Returns(nn.Module):
    """Returns values that its feedback needs, views of them, and others."""

    def __init__(self, of: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.layer, self.of = nn.Linear(4, 4), of

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.layer(x)
        return self.of(z, torch.sigmoid(z))


def traced(function: Callable[..., list[Tensor]], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def check(function: Callable[..., list[Tensor]], writes: int, *inputs: Tensor) -> None:
    """The pass makes so many writes; results and inputs stay."""
    inputs = inputs or (X,)
    module, copies = traced(function, *inputs), [x.clone() for x in inputs]
    expected = function(*copies)
    assert write_in_place(module.graph) == writes
    module.recompile()
    for found, wanted in zip(module(*inputs), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for x, before in zip(inputs, copies):
        torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_chain_is_written_over() -> None:
    check(lambda x: [(x * 2 + 1).abs() / 3], 3)


def test_second_argument_of_a_sum() -> None:
    check(lambda x: [x + (x * 2)], 1)


def test_not_the_dividend_of_an_input() -> None:
    check(lambda x: [x / (x + 5)], 0)


def test_arguments_and_results_stay() -> None:
    check(lambda x: [x + 1], 0)
    check(lambda x: [y := x + 1, y * 2], 0)
    check(lambda x: [(y := x + 1).view(12), y * 2], 0)


def test_later_readers() -> None:
    check(lambda x: [(y := x + 1) * 2 - y], 1)  # only the difference, over the product


def test_views_of_the_old_value_are_readers() -> None:
    check(lambda x: [(v := (y := x + 1).t(), y * 2)[1] + v.t().exp()], 2)  # the exponential and the sum


def test_expanded_value_is_not_written_to() -> None:
    check(lambda x: [x.sum(0, keepdim=True).expand(3, 4) * 2], 0)


def test_dtype_and_shape_must_stay() -> None:
    check(lambda x: [(x + 1) + x.sum((0, 1))], 1)
    check(lambda x: [(x.sum(0) + 1) + x], 1)  # the sum takes its first step in place, not the broadcast
    check(lambda x: [(x + 1) > 0], 0)


def test_two_writes_on_one_memory() -> None:
    check(lambda x: [(x + 1) * 2, x * 3], 1)
    check(lambda x: [((x + 1).view(12) * 2).view(3, 4) - 1], 2)


@pytest.mark.parametrize(
    ("function", "done"),
    [
        (lambda x: [torch.zeros_like(x).add_(x).mul_(2)], True),
        (lambda x: [torch.zeros_like(x).bernoulli_(0.5) + x], True),
        (lambda x: [(y := x + 1, z := y.mul_(2), y + z)[2]], True),
        (lambda x: [(y := x + 1, y.view(12).mul_(2), y + 0)[2]], False),
    ],
)
def test_functional(function: Callable[..., list[Tensor]], done: bool) -> None:
    module = traced(function, X)
    assert make_functional(module.graph) is done
    if not done:
        return
    module.recompile()
    torch.manual_seed(0)
    expected = function(X.clone())
    torch.manual_seed(0)
    torch.testing.assert_close(module(X), expected)
    assert not any(n.target._schema.is_mutable for n in module.graph.nodes if hasattr(n.target, "_schema"))


@pytest.mark.parametrize(
    ("of", "all_apart"),
    [
        (lambda z, h: [torch.tanh(h) * 2], True),
        (lambda z, h: [h, h * 2], False),
        (lambda z, h: [h.t(), h * 2], False),
        (lambda z, h: [h.view(-1)[2:], z.unsqueeze(0)], False),
    ],
)
def test_saved_values_apart_from_what_is_returned(
    of: Callable[[Tensor, Tensor], list[Tensor]], all_apart: bool
) -> None:
    """What a program takes for memory of its own is; a write to what it returns is noticed without a look at the rest."""
    model = lfpgraph.wrap(_Returns(of), "lfp-epsilon", engine="static")
    x = torch.randn(3, 4)
    model(x)
    program = next(iter(wrapping_of(model).static.programs)).program  # type: ignore[union-attr]
    values = [*model.layer.parameters(), x]
    places = {p.untyped_storage()._cdata for p in values}
    found = program.call_forward(*(v.detach() for v in values))
    outputs, saved = found[: program.n_outputs], found[program.n_outputs :]
    places |= {t.untyped_storage()._cdata for t in outputs}
    shared = [t.untyped_storage()._cdata in places for t in saved]
    assert not any(fresh and not_own for fresh, not_own in zip(program.is_fresh, shared))
    assert not all_apart or program.is_fresh == [not not_own for not_own in shared]


class _Norms(nn.Module):
    """Batch norms of several kinds: one after the other, one that is called twice, one whose statistics are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.read = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4, affine=False).requires_grad_(False)
        self.layer = nn.Linear(4, 4)
        self.plain = nn.BatchNorm1d(4, momentum=0.3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.first(self.frozen(x)).relu())
        x = self.twice(self.twice(x) * 2)
        x = self.plain(x + self.read(x) * self.read.running_var)  # type: ignore[operator]
        return x.tanh()


@pytest.mark.parametrize("memory", ["fast", "min"])
def test_running_statistics_are_written_in_place(memory: str) -> None:
    """Outputs, gradients and buffers as the plain model's; only buffers that are read once are the program's to write."""
    torch.manual_seed(0)
    plain = _Norms()
    model = lfpgraph.wrap(copy.deepcopy(plain), "gradient", engine="static", memory=memory)
    for _ in range(3):
        x, outputs = torch.randn(6, 4), []
        for m in (plain, model):
            m.zero_grad()
            outputs.append(m(x))
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        for (name, p), q in zip(model.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(p, q, msg=name)
    (entry,) = wrapping_of(model).static.programs  # type: ignore[union-attr]
    written = {entry.graph.placeholders[i].target for i in entry.program.written}
    both = {f"{norm}.{stat}" for norm in ("first", "frozen", "plain") for stat in ("running_mean", "running_var")}
    assert written == both | {f"{norm}.num_batches_tracked" for norm in ("first", "frozen", "plain", "read")}


@pytest.mark.parametrize("reentrant", [False, True])
def test_statistics_within_a_checkpoint(reentrant: bool) -> None:
    """A checkpoint around the whole model runs it twice, and twice the statistics move, as the plain model's do."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    model = lfpgraph.wrap(copy.deepcopy(plain), "gradient", engine="static")
    for _ in range(3):
        x = torch.randn(6, 4, requires_grad=True)
        for m in (plain, model):
            checkpoint(m, x, use_reentrant=reentrant).square().sum().backward()
    for (name, p), q in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_a_refused_first_run_has_written_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr("lfpgraph.wrapping.static_engine.differ", lambda found, expected: 1e6)
    with pytest.raises(TraceError):
        lfpgraph.wrap(model, engine="static")(torch.randn(6, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_on_a_gpu_batch_norms_run_by_the_kernels_of_eager_ones() -> None:
    """The operation that picks them; it computes the same, and its own way back follows."""

    def joint(x: Tensor, w: Tensor, mean: Tensor, var: Tensor, calls: Tensor, s: Tensor) -> list[Tensor]:
        given = (x, w, w, mean, var)
        out, own, invstd, new_mean, new_var = aten._native_batch_norm_legit_functional(*given, True, 0.1, 1e-5)
        back = aten.native_batch_norm_backward(s, x, w, mean, var, own, invstd, True, 1e-5, [True] * 3)
        return [new_mean, new_var, calls + 1, out, *back]

    x, s = torch.randn(2, 4, 3, 5)
    values = [x, torch.rand(3), torch.randn(3), torch.rand(3), torch.tensor(7), s]
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [torch.empty_like(value, device="cuda") for value in values]
        module = make_fx(joint)(*fakes)
    assert write_statistics(module.graph, [2, 3, 4]) == {2, 3}
    assert raise_counters(module.graph, [2, 3, 4]) == {4}
    targets = {node.target for node in module.graph.nodes}
    assert {aten._batch_norm_impl_index.default, aten._batch_norm_impl_index_backward.default} <= targets
    module.recompile()
    expected = joint(*values)
    given = [value.clone() for value in values]
    found = module(*given)
    for a, b in zip([*given[2:5], *found[3:]], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_weight_s_signal_is_scaled_right_behind_it() -> None:
    """While it is in the cache, and its weight need not wait for the end of the walk."""
    model = nn.Sequential(nn.Linear(200, 150), nn.ReLU(), nn.Linear(150, 120), nn.ReLU(), nn.Linear(120, 110))
    wrapped = lfpgraph.wrap(model, "lfp", engine="static")
    wrapped(torch.randn(5, 200)).sum().backward()
    (entry,) = wrapping_of(wrapped).static.programs  # type: ignore[union-attr]
    place = {node: i for i, node in enumerate(entry.program.feedback.graph.nodes)}
    scalings = [node for node in place if node.target is torch.ops.lfpgraph.scale_by_floored_size_.default]
    assert len(scalings) == 3
    assert all(place[node] - place[node.args[0]] == 1 for node in scalings)
