"""The edges of a wrap: whatever is done to a wrapped model from outside, it gives feedback, or is refused, or says so."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import random
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import LiveOnlyError, WrapError

from .support.blocks import Block, Deep
from .support.helpers import RECORDED, assert_same, gradients

WAYS: dict[str, dict[str, Any]] = {
    "auto": {"engine": "auto"},
    "live": {"engine": "live"},
    "static": {"engine": "static"},
    "regional": {"regional": True},
}
X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep(depth=2).double().eval()


def live(model: nn.Module) -> dict[str, Tensor]:
    """Feedback of a copy of a model, wrapped just now."""
    return gradients(lfpgraph.wrap(copy.deepcopy(model), engine="live"), X)


def assert_feedback(model: nn.Module, plain: nn.Module) -> None:
    """Three steps of a wrapped model give the feedback of a plain one that is like it."""
    expected = live(plain)
    for _ in range(3):
        found = {name.removeprefix("_orig_mod."): g for name, g in gradients(model, X).items()}
        assert_same(found, expected, 1e-4)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it
@pytest.mark.parametrize("kind", ["model.compile", "torch.compile", "compiled before", "part.compile"])
def test_compiled(kind: str, way: dict[str, Any]) -> None:
    """What torch.compile makes of a wrapped model still gives feedback."""
    model = called = deep()
    torch._dynamo.reset()
    if kind == "compiled before":
        model.compile(backend="eager")
    lfpgraph.wrap(model, **way)
    if kind == "model.compile":
        model.compile(backend="eager")
    if kind == "torch.compile":
        called = torch.compile(model, backend="eager")
    if kind == "part.compile":
        model.blocks[0].compile(backend="eager")
        if way == WAYS["static"]:
            with pytest.raises(LiveOnlyError, match="blocks.0 is compiled|__create_fn__ cannot be found"):  # torch 2.11
                model(X)
            return
    assert_feedback(called, deep())
    lfpgraph.unwrap(model)
    assert (model._compiled_call_impl is not None) == (kind == "compiled before")


def test_copies(way: dict[str, Any]) -> None:
    model = lfpgraph.wrap(deep(), **way)
    gradients(model, X)
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert lfpgraph.is_wrapped(twin)
        assert_feedback(twin, deep())
    lfpgraph.unwrap(copy.copy(model))
    assert_feedback(model, deep())


@pytest.mark.parametrize("name", lfpgraph.composite_names())
def test_composites_are_pickled(name: str) -> None:
    for composite in (lfpgraph.get_composite(name), lfpgraph.get_composite(name).override("a.*", epsilon=0.5)):
        assert pickle.loads(pickle.dumps(composite)) == composite == copy.deepcopy(composite)


def _feedback_of(model: nn.Module, queue: Any) -> None:
    queue.put({name: g.tolist() for name, g in gradients(model, X).items()})


def test_another_process() -> None:
    """A wrapped model is sent to a process that is spawned."""
    model = lfpgraph.wrap(deep(), "lfp-gamma", engine="live")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_feedback_of, args=(model, queue))
    process.start()
    found = queue.get(timeout=300)
    process.join()
    assert_same({n: torch.tensor(g, dtype=torch.float64) for n, g in found.items()}, gradients(model, X), 1e-12)


def test_replicas_are_refused(way: dict[str, Any]) -> None:
    """Copies as nn.DataParallel makes them: their parameters are no leaves."""
    with pytest.raises(WrapError, match="DistributedDataParallel"):
        lfpgraph.wrap(deep(), **way)._replicate_for_data_parallel()(X)


def _hook(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, args, out: out * 2)


def _replaced_forward(model: nn.Module) -> None:
    model.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * -2, model)


def _new_parts(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.blocks[0] = Block().double()
    model.head = nn.Sequential(model.head, nn.Linear(3, 3).double())


def _copied_part(model: nn.Module) -> None:
    part = copy.copy(model.blocks[0])
    part.norm = copy.deepcopy(part.norm)
    with torch.no_grad():
        part.norm.weight.mul_(2)
    model.blocks[1] = part


def _assigned(model: nn.Module) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)
    model.requires_grad_()


@pytest.mark.parametrize("change", [_hook, _replaced_forward, _new_parts, _copied_part, _assigned])
def test_changes_after_the_wrap(change: Callable[[nn.Module], None], way: dict[str, Any]) -> None:
    model, plain = lfpgraph.wrap(deep(), **way), deep()
    for _ in range(2):
        gradients(model, X)
    change(model)
    change(plain)
    assert_feedback(model, plain)


def test_a_wrapped_model_inside_another(way: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    inner = lfpgraph.wrap(deep(), **way)
    outer = lfpgraph.wrap(nn.Sequential(inner))
    gradients(inner, X)
    found = {name.removeprefix("0."): g for name, g in gradients(outer, X).items()}
    assert_same(found, live(deep()), 1e-4)
    assert "no feedback" not in caplog.text
    with pytest.raises(WrapError, match="0 of a wrapped Sequential"):
        lfpgraph.wrap(lfpgraph.wrap(nn.Sequential(deep()))[0])


def test_threads(way: dict[str, Any]) -> None:
    """Two threads call a model that has never run before."""
    model, failed = lfpgraph.wrap(deep(), **way), list[Exception]()

    def work() -> None:
        try:
            for _ in range(2):
                out = model(X)
                (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert_same({n: p.grad / 4 for n, p in model.named_parameters()}, live(deep()), 1e-4)


class Live(nn.Module):
    """Reads a number, and does what only Python can do where it is asked to, or its input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 5), 1.0

    def forward(self, x: Tensor, noisy: bool = False) -> Tensor:
        if noisy or x.shape[0] > 6:
            x = x * random.random()
        return self.layer(x) * self.scale


@pytest.mark.parametrize("kind", ["number", "argument", "size"])
def test_ways_that_no_program_knows(kind: str) -> None:
    """A program of before is not taken where the model is another one by now, or goes a way that was not observed."""
    plain = Live().double()
    for engine in ("auto", "static"):
        model = lfpgraph.wrap(copy.deepcopy(plain), RECORDED, engine=engine)
        for i in range(6):
            plain.scale = model.scale = 2.0 if kind == "number" and i > 2 else 1.0
            given = {"noisy": kind == "argument" and i > 2}
            x = torch.cat([X, X]) if kind == "size" and i > 2 else X
            found = []
            for m in (plain, model):
                random.seed(i)
                if m is model and engine == "static" and kind != "number" and i > 2:
                    with pytest.raises(LiveOnlyError, match=r"draws from Python's random \(test_edges.py:"):
                        m(x, **given)
                    return
                found.append(gradients(m, x, **given))
            assert_same(found[1], found[0], 1e-9)


def test_second_derivatives(caplog: pytest.LogCaptureFixture) -> None:
    """The static engine has none and says so; "auto" goes live where they are asked for."""
    static, auto = (lfpgraph.wrap(deep(), engine=engine) for engine in ("static", "auto"))
    with pytest.raises(WrapError, match="second derivative"):
        torch.autograd.grad(static(X).sum(), list(static.parameters()), create_graph=True)
    for _ in range(3):
        torch.autograd.grad(auto(X).sum(), list(auto.parameters()), create_graph=True)
    assert "second derivative" in caplog.text and "create_graph" in lfpgraph.explain_wrap(auto).why


def test_fx_traces_the_model_itself(way: dict[str, Any]) -> None:
    model = lfpgraph.wrap(deep(), **way)
    assert torch.equal(torch.fx.symbolic_trace(model)(X), deep()(X))


def test_explanation_is_consistent(way: dict[str, Any]) -> None:
    """Engine, since which call, and how many calls."""
    model = lfpgraph.wrap(deep(), **way)
    for _ in range(3):
        model(X)
    found = lfpgraph.explain_wrap(model)
    engine = "live" if way == WAYS["live"] else "static"
    assert (found.engine, found.since) == (engine, 2 if way == WAYS["auto"] else 1)
    assert found.live_calls + found.static_calls == 3 and f"{engine} since call" in str(found)


def test_lazy_modules_are_refused_by_the_static_engine() -> None:
    model = lfpgraph.wrap(nn.Sequential(nn.LazyLinear(3)), engine="static")
    with pytest.raises(LiveOnlyError, match="first call makes its parameters"):
        model(torch.ones(2, 4))
    with torch.no_grad():
        model(torch.ones(2, 4))
    model(torch.ones(2, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_the_part_that_cannot_be_traced_is_named() -> None:
    """A part that does what no program keeps is named by its path."""
    model = lfpgraph.wrap(deep(), regional=True)
    model.blocks[1].register_forward_pre_hook(lambda *args: None)  # called around the part's program
    model.blocks[1].norm.register_forward_hook(lambda *args: None)
    with pytest.raises(
        LiveOnlyError, match=r"blocks.1 \(Block\) cannot run by the static engine: norm has a forward hook"
    ):
        model(X)


def _all_hooked(model: nn.Module) -> None:
    with nn.modules.module.register_module_full_backward_hook(lambda module, before, after: None):
        model(X)


def _weights_kept(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.head)
    with nn.utils.parametrize.cached():
        model(X)


class Filling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3).double()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["hidden"] = self.layer(batch["x"])
        return batch["hidden"].relu()


@pytest.mark.parametrize(
    ("model", "call", "why"),
    [
        (deep(), _all_hooked, "hooks on all modules"),
        (deep(), _weights_kept, "cached"),
        (Filling(), lambda model: model({"x": X}), "writes into a container among its arguments"),
    ],
)
def test_what_no_program_keeps_is_refused_by_the_static_engine(model: nn.Module, call: Any, why: str) -> None:
    with pytest.raises(LiveOnlyError, match=why):
        call(lfpgraph.wrap(copy.deepcopy(model), engine="static"))
    call(lfpgraph.wrap(model))
