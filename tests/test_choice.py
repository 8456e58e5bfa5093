"""engine="auto": the static engine runs a call only while its program is the model as it is now, for calls of that kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.tracing.tracer import trace
from lfpgraph.wrapping.choice import Explanation

FACTOR = [2.0]


def helper(x: Tensor) -> Tensor:
    return x * FACTOR[0]


class Model(nn.Module):
    """Goes another way where it is asked to, and for a large batch; counts its calls there."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.scale, self.calls, self.large = nn.Linear(4, 4), 1.0, 0, 0

    def forward(self, x: Tensor, by: Any = 1, flag: bool = False) -> Tensor:
        x = self.lin(x) * self.scale * (by.scale if isinstance(by, Settings) else by)
        if flag:
            x = helper(x)
            self.calls += 1
        if x.shape[0] > 4:
            x = x.neg()
            self.large += 1
        return x if type(by) is not float else x + 1


class Settings:
    scale = 1.0


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return lfpgraph.wrap(Model())


def same(model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Explanation:
    """Three calls equal the model's own, outputs and feedback being there."""
    with torch.no_grad():
        counts = model.calls, model.large
        expected = model(x, *args, **kwargs)
        model.calls, model.large = counts
    for _ in range(3):
        out = model(x, *args, **kwargs)
        torch.testing.assert_close(out, expected)
        out.sum().backward()
    return lfpgraph.explain_wrap(model)


def test_a_change_ends_the_programs_of_before(model: nn.Module) -> None:
    x = torch.randn(3, 4)
    assert same(model, x).static_calls == 2
    model.scale = 5.0
    assert same(model, x).static_calls == 4


def test_calls_of_another_kind_are_observed_first(model: nn.Module) -> None:
    x = torch.randn(3, 4)
    same(model, x)
    assert same(model, x, 2).static_calls == 4
    found = same(model, x, flag=True)
    assert found.engine == "live" and "writes calls" in found.why
    assert model.calls == 3


def test_sizes_that_go_another_way_are_observed_first(model: nn.Module) -> None:
    same(model, torch.randn(3, 4))
    assert same(model, torch.randn(2, 4)).static_calls == 5
    found = same(model, torch.randn(6, 4))
    assert found.engine == "live" and "writes large" in found.why
    assert model.large == 3


def test_numbers_of_different_types_are_different_arguments(model: nn.Module) -> None:
    x = torch.randn(3, 4)
    for by in (1, 1.0, True, 1):
        same(model, x, by)


def test_an_object_among_the_arguments_may_change(model: nn.Module) -> None:
    x, settings = torch.randn(3, 4), Settings()
    same(model, x, settings)
    settings.scale = 3.0
    found = same(model, x, settings)
    assert found.engine == "live" and "it is given a Settings" in found.why


def test_hooks_on_the_model_itself_run(model: nn.Module) -> None:
    x, seen = torch.randn(3, 4), []
    same(model, x)
    model.register_forward_hook(lambda module, args, out: seen.append(1) or out * 2)
    assert same(model, x).engine == "live"
    assert len(seen) == 4


def test_a_frozen_model_runs(model: nn.Module) -> None:
    model.requires_grad_(False)
    assert not model(torch.randn(3, 4)).requires_grad
    assert model(torch.randn(3, 4, requires_grad=True)).requires_grad


def test_a_number_that_changes_at_every_step_needs_one_plan() -> None:
    model = lfpgraph.wrap(Model(), engine="live")
    for step in range(4):
        model.scale = 1.0 + step
        model(torch.randn(3, 4)).sum().backward()
    assert lfpgraph.explain_wrap(model).plans == 1


def test_what_modules_hold_stays_the_same_object() -> None:
    """torch.export leaves copies of lists and dictionaries behind; a trace puts back the model's own, as they were."""

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.sizes, self.table = nn.LSTM(4, 4), [1, [2]], {"a": {"b": 3}}

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0] * self.sizes[0]

    holder = Holds()
    sizes, inner, table = holder.sizes, holder.sizes[1], holder.table
    trace(holder, torch.randn(3, 2, 4))
    assert holder.sizes is sizes and sizes == [1, [2]] and sizes[1] is inner
    assert holder.table is table and table == {"a": {"b": 3}}
    model = lfpgraph.wrap(nn.LSTM(4, 4))
    for _ in range(3):
        model(torch.randn(3, 2, 4))[0].sum().backward()
    assert lfpgraph.explain_wrap(model).static_calls == 2


@pytest.mark.parametrize("how", [{"engine": "static"}, {"regional": ["0", "2"]}])
def test_calls_of_the_static_engine_are_counted(how: dict[str, Any]) -> None:
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), **how)
    for _ in range(2):
        model(torch.randn(3, 4)).sum().backward()
    found = lfpgraph.explain_wrap(model)
    assert (found.engine, found.live_calls, found.static_calls) == ("static", 0, 2)


def test_the_first_calls_run_live_and_the_change_of_engine_moves_no_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 3)
    grads: dict[str, list[Tensor]] = {}
    for engine in ("auto", "live"):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
        model = lfpgraph.wrap(plain, engine=engine)
        with caplog.at_level("INFO", "lfpgraph"):
            for _ in range(6):
                model(torch.randn(3, 4, dtype=torch.float64)).square().sum().backward()
                grads.setdefault(engine, []).append(plain[0].weight.grad.clone())
        found = lfpgraph.explain_wrap(model)
        assert (found.live_calls, found.static_calls) == ((4, 2) if engine == "auto" else (6, 0))
    assert len([r for r in caplog.records if "runs by the static engine from its next call on" in r.message]) == 1
    torch.testing.assert_close(grads["auto"], grads["live"], rtol=1e-9, atol=1e-12)


def test_before_its_first_calls_are_over_a_model_says_that_it_runs_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 100)
    model = lfpgraph.wrap(nn.Linear(4, 2))
    for _ in range(5):
        model(torch.randn(3, 4)).sum().backward()
    found = lfpgraph.explain_wrap(model)
    assert (found.engine, found.traces, found.live_calls) == ("live", 0, 5) and "its first 100 calls" in found.why


class Filling(nn.Module):
    """Puts what it has made into the dictionary that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        given["h"] = self.lin(given["x"])
        return given["h"].relu()


def test_a_container_of_the_callers_is_filled_at_every_call() -> None:
    model = lfpgraph.wrap(Filling())
    for _ in range(4):
        given = {"x": torch.randn(3, 4)}
        model(given).sum().backward()
        torch.testing.assert_close(given["h"], model.lin(given["x"]))
    assert "container among its arguments" in lfpgraph.explain_wrap(model).why


class Odd(tuple):
    """As the irreducible representations of e3nn are."""

    def __len__(self) -> int:
        raise NotImplementedError


class Closed:
    def __getattribute__(self, name: str) -> Any:
        raise PermissionError("closed")


class Holds(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held, self.lin = held, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * (1.0 if self.held is None else 2.0)


def test_what_objects_make_of_their_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is read by Python's own methods; a model that holds what cannot be read at all runs live, and says why."""
    monkeypatch.setattr("lfpgraph.wrapping.choice.LIVE_FIRST", 0)
    for held, engine in ((Odd([Odd(), torch.zeros(2)]), "static"), ([Closed()], "live")):
        model = lfpgraph.wrap(Holds(held))
        for _ in range(2):
            model(torch.ones(3, 4)).sum().backward()
        found = lfpgraph.explain_wrap(model)
        assert found.engine == engine
        assert engine == "static" or "PermissionError: closed" in found.why


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        return self.b(torch.cond(z.sum() > 0, torch.relu, torch.tanh, (z,)))


@pytest.mark.slow  # torch.cond takes 20 s at its first call
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch.cond
def test_what_only_a_program_has_no_rule_for_runs_live() -> None:
    """A trace holds `torch.cond` as one operation, a run the branch that was taken."""
    torch.manual_seed(0)
    plain = Branches().double()
    plain(torch.ones(3, 4).double())  # the first call in a process does more than the others
    model, twin = (lfpgraph.wrap(copy.deepcopy(plain), engine=engine) for engine in ("auto", "live"))
    for sign in (1, -1, 1):
        x = sign * torch.ones(3, 4).double()
        for net in (model, twin):
            net.zero_grad()
            net(x).square().sum().backward()
        torch.testing.assert_close(*([p.grad for p in net.parameters()] for net in (model, twin)))
    assert lfpgraph.explain_wrap(model).engine == "live"


def test_writes_that_a_trace_does_not_show_keep_a_model_live() -> None:
    """The schema of an instance norm does not say that it writes its running statistics."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, track_running_stats=True), nn.ReLU())
    auto, static = (lfpgraph.wrap(copy.deepcopy(plain), engine=engine) for engine in ("auto", "static"))
    for x in torch.randn(3, 4, 2, 8):
        plain(x)
        auto(x).sum().backward()
    torch.testing.assert_close(dict(auto.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
    assert "1.running_mean" in lfpgraph.explain_wrap(auto).why
    with pytest.raises(
        lfpgraph.errors.LiveOnlyError, match="writes to 1.running_mean in a way that a trace does not show"
    ):
        static(x)


def test_an_output_that_a_trace_cuts_off_keeps_a_model_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.14 cuts off what comes out of a checkpoint in a checkpoint."""

    class Cut(Model):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(*args, **kwargs).detach()

    def cut_off(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        twin = copy.deepcopy(model)
        twin.__class__ = Cut
        return trace(twin, *args, **kwargs)

    monkeypatch.setattr("lfpgraph.wrapping.programs.trace", cut_off)
    x = torch.randn(3, 4)
    with pytest.raises(lfpgraph.errors.LiveOnlyError, match="output 0 of its trace is cut off from its parameters"):
        lfpgraph.wrap(Model(), engine="static")(x)
    model = lfpgraph.wrap(Model())
    for _ in range(3):
        model(x).sum().backward()
    assert model.lin.weight.grad is not None
    assert lfpgraph.explain_wrap(model).static_calls == 0 and "cut off" in lfpgraph.explain_wrap(model).why
