"""`tracing.guards`: what changes between two calls of a model is noticed and named, and what does not is not."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lfpgraph.models_zoo import digits
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

from lfpgraph.tracing.guards import Guard, Observation

SCALE = 2.0
TABLE = {"slope": 0.1}
SETTINGS = types.SimpleNamespace(scale=2.0)


def helper(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


def times(by: float) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return x * by

    return function


class Config:
    kinds = ("a", "b")

    def __init__(self) -> None:
        self.scale, self.inner = 1.0, types.SimpleNamespace(flag=True)


class Slotted:
    __slots__ = ("scale",)


class Block(nn.Module):
    """Reads state of many kinds."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.drop, self.act = nn.Linear(4, 4), nn.Dropout(0.1), nn.LeakyReLU(0.1)
        self.scaling: dict[str, float] = {"default": 1.0}
        self.sizes, self.config, self.one = [1, 2], Config(), 1
        self.apply_it, self.constant, self.slotted = times(2.0), torch.ones(4), Slotted()
        self.slotted.scale = 1.0

    @property
    def twice(self) -> float:
        return self.factor * 2

    def forward(self, x: Tensor, bias: float = 0.0) -> Tensor:
        x = x * getattr(self.lin.weight, "scale", 1.0)
        x = self.act(self.drop(self.lin(x))) * self.scaling["default"] * self.one * self.twice + self.constant
        x = self.apply_it(x) * sum(self.sizes) * self.config.scale * (1 if self.config.inner.flag else 2) + bias
        return helper(F.relu(x)) * SCALE * TABLE["slope"] * SETTINGS.scale * len(Config.kinds) * self.slotted.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def observed(model: nn.Module, *args: Any, **kwargs: Any) -> Observation:
    with Observation(model) as seen:
        model(*args, **kwargs)
    return seen


def guard_of(model: nn.Module, *args: Any, **kwargs: Any) -> Guard:
    """The guard of a model that is expected to need no live engine."""
    seen = observed(model, *args, **kwargs)
    assert seen.why_live is None
    assert seen.guard is not None
    return seen.guard


def _set(path: str, value: Any) -> Callable[[Net, pytest.MonkeyPatch], None]:
    def change(model: Net, patch: pytest.MonkeyPatch) -> None:
        holder, _, name = path.rpartition(".")
        owner: Any = model
        for part in holder.split("."):
            owner = getattr(owner, part)
        patch.setattr(owner, name, value)

    return change


def _global(name: str, value: Any) -> Callable[[Net, pytest.MonkeyPatch], None]:
    return lambda model, patch: patch.setattr(sys.modules[__name__], name, value)


def _closure(model: Net, patch: pytest.MonkeyPatch) -> None:
    model.block.apply_it.__closure__[0].cell_contents = 3.0  # type: ignore[attr-defined]


def _version(model: Net, patch: pytest.MonkeyPatch) -> None:
    model.block.constant.add_(1)


CHANGES: dict[str, tuple[Callable[[Net, pytest.MonkeyPatch], Any], str]] = {
    "dropout": (_set("block.drop.p", 0.5), "block.drop.p was 0.1 and is 0.5"),
    "slope": (_set("block.act.negative_slope", 0.2), "block.act.negative_slope was 0.1 and is 0.2"),
    "mode": (lambda m, p: m.block.eval(), "block.training was True and is False"),
    "entry": (lambda m, p: m.block.scaling.update(default=2.0), "block.scaling['default'] was 1.0 and is 2.0"),
    "new entry": (lambda m, p: m.block.scaling.update(other=2.0), "block.scaling['other'] is new"),
    "list": (lambda m, p: m.block.sizes.append(3), "block.sizes[2] is new"),
    "float": (_set("block.one", 1.0), "block.one was 1 and is 1.0"),
    "bool": (_set("block.one", True), "block.one was 1 and is True"),
    "config": (_set("block.config.scale", 2.0), "block.config.scale was 1.0 and is 2.0"),
    "inner config": (_set("block.config.inner.flag", False), "block.config.inner.flag was True and is False"),
    "slot": (_set("block.slotted.scale", 2.0), "block.slotted.scale was 1.0 and is 2.0"),
    "new attribute": (lambda m, p: setattr(m.block, "factor", 1.0), "block.factor is new"),
    "attribute of a parameter": (lambda m, p: setattr(m.block.lin.weight, "scale", 2.0), "block.lin.weight.scale is new"),
    "submodule": (lambda m, p: setattr(m, "head", nn.Linear(4, 2)), "head has been replaced"),
    "new submodule": (lambda m, p: m.add_module("more", nn.ReLU()), "more is new"),
    "hook": (lambda m, p: m.head.register_forward_hook(lambda *a: None), "head._forward_hooks."),
    "pre-hook": (lambda m, p: m.head.register_forward_pre_hook(lambda *a: None), "head._forward_pre_hooks."),
    "backward hook": (lambda m, p: m.head.register_full_backward_hook(lambda *a: None), "head._backward_hooks."),
    "forward": (_set("block.forward", lambda x: x), "block.forward is new"),
    "class": (lambda m, p: setattr(m.head, "__class__", nn.Bilinear), "the class of head has been replaced"),
    "class's forward": (lambda m, p: p.setattr(Block, "forward", lambda s, x: x), "Block.forward has been replaced"),
    "torch's forward": (lambda m, p: p.setattr(nn.Linear, "forward", lambda s, x: x), "Linear.forward has been"),
    "class attribute": (lambda m, p: p.setattr(Block, "factor", 3.0), "Block.factor was 2.0 and is 3.0"),
    "class in a global": (lambda m, p: p.setattr(Config, "kinds", ("a",)), "Config.kinds has been replaced"),
    "global": (_global("SCALE", 3.0), "test_guards.py: SCALE was 2.0 and is 3.0"),
    "global's type": (_global("SCALE", 2), "test_guards.py: SCALE was 2.0 and is 2"),
    "global function": (_global("helper", lambda x: x), "test_guards.py: helper has been replaced"),
    "global dict": (lambda m, p: p.setitem(TABLE, "slope", 0.2), "test_guards.py: TABLE['slope'] was 0.1 and is 0.2"),
    "global object": (lambda m, p: p.setattr(SETTINGS, "scale", 1), "test_guards.py: SETTINGS.scale was 2.0 and is 1"),
    "builtin": (lambda m, p: p.setitem(globals(), "len", lambda x: 7), "test_guards.py: len is new"),
    "module's function": (lambda m, p: p.setattr(F, "relu", torch.tanh), "test_guards.py: F.relu has been replaced"),
    "defaults": (lambda m, p: p.setattr(helper, "__defaults__", (3.0,)), "helper.__defaults__ has been replaced"),
    "forward's defaults": (lambda m, p: p.setattr(Block.forward, "__defaults__", (3.0,)), "forward.__defaults__"),
    "code": (lambda m, p: p.setattr(helper, "__code__", (lambda x, by: x).__code__), "helper.__code__"),
    "closure": (_closure, "was 2.0 and is 3.0"),
    "tensor's values": (_version, "block.constant was 0 and is 1"),
    "default dtype": (lambda m, p: torch.set_default_dtype(torch.float64), "the default dtype was"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dtype = Net(), torch.get_default_dtype()
    guard = guard_of(model, torch.randn(3, 4))
    assert guard.changed() is None
    change, words = CHANGES[kind]
    try:
        change(model, monkeypatch)
        assert words in (guard.changed() or "nothing")
        assert words in (guard.changed() or "nothing")  # it stays so
    finally:
        torch.set_default_dtype(dtype)


def test_untying_is_a_change() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    guard = guard_of(model, torch.randn(3, 4))
    assert guard.changed() is None
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    assert "1.weight, one tensor with 0.weight," in (guard.changed() or "")


def test_equal_values_are_no_change() -> None:
    """Numbers that are set anew to what they were, attributes in another order, parameters and modes set back."""
    model = Net()
    guard = guard_of(model, torch.randn(3, 4))
    model.block.drop.p = float("0.1")
    one = model.block.__dict__.pop("one")
    model.block.one = one
    model.eval().train()
    model.head.weight = nn.Parameter(torch.randn(2, 4))
    assert guard.changed() is None
    assert guard.changed() is None
    model.block.drop.p = 0.3
    assert guard.changed() == "block.drop.p was 0.1 and is 0.3"


def test_two_functions_of_one_code_are_watched_each() -> None:
    model = nn.Module()
    model.first, model.second = times(2.0), times(3.0)
    model.forward = lambda x: model.second(model.first(x))  # type: ignore[assignment]
    guard = guard_of(model, torch.randn(3))
    model.second.__closure__[0].cell_contents = 4.0  # type: ignore[union-attr]
    assert "function was 3.0 and is 4.0" in (guard.changed() or "")


def test_what_no_code_names_may_change_inside() -> None:
    """A trainer that the model knows counts its steps; what it is made of is not the model's state."""
    model = Net()
    model.trainer = types.SimpleNamespace(step=0)
    guard = guard_of(model, torch.randn(3, 4))
    model.trainer.step = 1
    assert guard.changed() is None


def _unchanged() -> dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]]:
    images = torch.randn(3, 1, 8, 8)
    found: dict[str, Any] = {
        "digits cnn": lambda: (digits.cnn(), (images,), {}),
        "digits vit": lambda: (digits.vit(), (images,), {}),
    }
    for name in ("resnet18", "lstm", "gpt2", "llama", "vit", "hf-resnet", "t5"):
        for attention in ("eager", "sdpa") if name in ("gpt2", "llama", "vit") else ("eager",):
            found[f"{name} {attention}"] = lambda name=name, attention=attention: _tiny(name, attention)
    found["bert without a mask"] = lambda: _tiny("bert", "sdpa", "attention_mask")
    return found


def _tiny(name: str, attention: str, without: str = "") -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, batch = build_tiny(name, attention)
    batch.pop(without, None)
    return (model, (batch["input"],), {}) if "input" in batch else (model, (), batch)


@pytest.mark.parametrize("name", _unchanged())
def test_a_model_that_trains_is_static(name: str) -> None:
    """Real models have nothing that a program would lose, once they have prepared themselves, and keep quiet over ten steps."""
    model, args, kwargs = _unchanged()[name]()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    seen = observed(model, *args, **kwargs)
    if seen.may_settle:  # transformers writes config.problem_type, and warns once
        seen = observed(model, *args, **kwargs)
    assert seen.why_live is None
    for _ in range(10):
        output = model(*args, **kwargs)
        loss = (
            output if isinstance(output, Tensor) else output.loss if output.get("loss") is not None else output.logits
        )
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert seen.guard is not None and seen.guard.changed() is None


def test_looking_is_quick() -> None:
    """12 microseconds on a quiet machine; the limit leaves room for a busy one."""
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    guard = guard_of(layers, torch.randn(3, 8))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            guard.changed()
        times.append((time.perf_counter() - start) / 100)
    assert min(times) < 50e-6


def test_a_profile_function_goes_on_and_comes_back() -> None:
    calls: list[str] = []

    def profile(frame: types.FrameType, event: str, argument: Any) -> None:
        calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        seen = observed(Net(), torch.randn(3, 4))
        kept = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert seen.why_live is None and kept is profile and "helper" in calls


def test_a_run_that_raises_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError):
        observed(Net(), torch.randn(3, 5))
    assert sys.getprofile() is None
    assert "__bool__" not in vars(Tensor)


def test_other_threads_are_not_observed() -> None:
    def run() -> None:
        nn.Linear(4, 4)(torch.randn(1, 4))
        print("from another thread", file=sys.stderr)

    model = Net()
    with Observation(model) as seen:
        thread = threading.Thread(target=run)
        thread.start()
        model(torch.randn(3, 4))
        thread.join()
    assert seen.why_live is not None and "starts a thread" in seen.why_live
