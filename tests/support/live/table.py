"""The table of live Python: how a case is written down, run beside a plain twin, and compared."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.composite import Composite, Ruleset
from lfpgraph.graph.calls import flatten_output

__all__ = [
    "CASES", "RECORDED", "Case", "Result", "assert_equal", "case", "data", "first_call", "first_feedback",
    "loss_of", "mlp", "run", "train",
]  # fmt: skip


# Changes nothing, but is recorded and planned like a feedback composite, which "gradient" is not.
RECORDED = Composite(
    "recorded", Ruleset(rules=False, epsilon=0.0, scale="signal"), overrides=(("no.such.module", Ruleset()),)
)

Step = Callable[[nn.Module, int], Any]  # the model and the number of the step; runs forward and backward


@dataclass
class Case:
    """One kind of Python.

    Attributes:
        build: makes the model, in float64, and the step that is taken with it.
        static: whether the static engine is to be right as well, and not only to say why it cannot.
        lfp: whether the model runs under feedback, too.
        same: whether feedback of its first call is to be that of `lfpgraph.feedback`.
        often: whether it is traced in each run of the tests, and not only in long ones.
        says: what the log says of it, where feedback cannot be all that is asked for.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Step]]
    static: bool = False
    lfp: bool = True
    same: bool = False
    often: bool = True
    says: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(**options: Any) -> Callable[[Callable[[], tuple[nn.Module, Step]]], Callable[[], tuple[nn.Module, Step]]]:
    """Put a function that builds a model and its step into the table."""

    def put(build: Callable[[], tuple[nn.Module, Step]]) -> Callable[[], tuple[nn.Module, Step]]:
        name = build.__name__
        assert name not in CASES
        CASES[name] = Case(name, build, **options)
        return build

    return put


@dataclass
class Result:
    """What three steps left behind, in order: outputs, gradients, values of parameters and buffers."""

    values: list[tuple[str, Any]] = field(default_factory=list)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def run(chosen: Case, composite: str | Composite | None, engine: str = "auto", steps: int = 3) -> Result:
    """Three steps of SGD; wrapped with a composite, or plain with None."""
    result = Result()
    with _float64():
        _seed(0)
        model, step = chosen.build()
        if composite is not None:
            lfpgraph.wrap(model, composite, engine=engine)
        for i in range(steps):
            _seed(100 + i)
            for p in model.parameters():
                p.grad = None
            outputs = step(model, i)
            result.values += [(f"step {i}, output {j}", _copied(x)) for j, x in enumerate(_flat(outputs))]
            for name, p in model.named_parameters():
                result.values.append((f"step {i}, gradient of {name}", _copied(p.grad)))
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 0.01 * (p.grad.to_dense() if p.grad.is_sparse else p.grad)
            for name, b in model.named_buffers():
                result.values.append((f"step {i}, buffer {name}", _copied(b)))
        for name, p in model.named_parameters():
            result.values.append((f"parameter {name}", _copied(p)))
    return result


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        x = x.detach()
        return (x.to_dense() if x.is_sparse else x).clone()
    return copy.copy(x)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [x for item in value for x in _flat(item)]
    return [value]


def assert_equal(found: Result, expected: Result, tolerance: float = 0.0) -> None:
    """Every value is the same, to a relative tolerance; None where None was."""
    assert [name for name, _ in found.values] == [name for name, _ in expected.values]
    for (name, x), (_, y) in zip(found.values, expected.values):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            assert x.dtype == y.dtype and x.shape == y.shape, name
            if tolerance == 0.0 or not (y.is_floating_point() or y.is_complex()):
                assert (
                    torch.equal(x, y) or (x.isnan() == y.isnan()).all() and torch.equal(x.nan_to_num(), y.nan_to_num())
                ), name
            else:
                torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert type(x) is type(y) and x == y, f"{name}: {x} is not {y}"


def data(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers of their own seed, so that they draw nothing from the model's."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(out: Any) -> Tensor:
    """A smooth loss of all float tensors in an output."""
    tensors = [x for x in _flat(list(out.values()) if isinstance(out, dict) else out) if isinstance(x, Tensor)]
    tensors = [x for x in tensors if x.requires_grad]
    return sum(((x.abs() - 0.3) ** 2).mean() for x in tensors)  # type: ignore[return-value]


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward, a loss, backward; the output."""
    out = model(*args, **kwargs)
    loss_of(out).backward()
    return out


def first_call(chosen: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a plain model's first call."""
    calls: list[Any] = []
    with _float64():
        _seed(0)
        model, step = chosen.build()
        model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        _seed(100)
        step(model, 0)
    return calls[0]


def first_feedback(
    chosen: Case, args: Any, kwargs: Any, composite: str | lfpgraph.Composite
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Feedback of one call: live, and by `lfpgraph.feedback`; by parameter, for a reward of the first output."""

    def given(out: Tensor) -> Tensor:
        return data(*out.shape, seed=3)

    with _float64():
        _seed(0)
        model, _ = chosen.build()
        _seed(100)
        expected = lfpgraph.feedback(model, kwargs or args, lambda out: given(out) * out, composite)
        _seed(0)
        model, _ = chosen.build()
        lfpgraph.wrap(model, composite, engine="live")
        _seed(100)
        leaves = flatten_output(model(*args, **kwargs))[0]
        out = next(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim())
        out.backward(-given(out))
    names = dict(model.named_parameters())
    found = {name: -p.grad for name, p in names.items() if p.grad is not None}
    return found, {name: x for name, x in expected.items() if name in names}
