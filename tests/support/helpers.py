"""What several test files share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

import lfpgraph
from lfpgraph import registry
from lfpgraph.cli import app as cli
from lfpgraph.composites.composite import Composite, Ruleset
from lfpgraph.registry import Rule


def remove_rule(op: OpOverload) -> Rule | None:
    """Take a rule out of the registry and return it."""
    return registry._RULES.pop(op, None)


def restore_rule(entry: Rule) -> None:
    """Put back what `remove_rule` returned."""
    assert entry.op is not None
    registry._RULES[entry.op] = entry


# Changes nothing about the gradient, and is recorded and planned all the same: the live engine leaves out what "gradient" asks.
RECORDED = Composite(
    "recorded", Ruleset(rules=False, epsilon=0.0, scale="signal"), overrides=(("no.such.module", Ruleset()),)
)


def true_gradient(engine: str) -> Composite | str:
    """The composite that puts an engine through the true gradient."""
    return "gradient" if engine == "static" else RECORDED


def assert_made(model: nn.Module, engine: str, count: int = 1) -> None:
    """The engine of a wrapped model has traced (static) or planned (live) this often, and the other one not at all."""
    found = lfpgraph.explain_wrap(model)
    assert found.engine == engine, found
    assert (found.traces, found.plans) == ((count, 0) if engine == "static" else (0, count)), found


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of b; 0 for two zeros."""
    size = b.double().norm().item()
    difference = (a.double() - b.double()).norm().item()
    return difference if size == 0 else difference / size


def gradients(
    model: nn.Module, *args: Any, seed: int = 1, weight: Tensor | None = None, **kwargs: Any
) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of the output (or of its loss), by parameter name."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = model(*args, **kwargs)
    loss = getattr(out, "loss", None)
    if loss is None:
        if not isinstance(out, Tensor):
            out = out[0] if isinstance(out, tuple) else out.logits
        loss = (
            out * (torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape) if weight is None else weight)
        ).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, floor: float = 1e-12
) -> None:
    """Every tensor of `expected` is in `found`, to a relative tolerance; tensors smaller than `floor` absolutely."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        error = (found[name].double() - value.double()).norm().item()
        assert error <= max(tolerance * value.double().norm().item(), floor), (
            f"{name}: {error} of {value.norm().item()}"
        )


def lfp(
    model: nn.Module, *args: Any, composite: str | Composite = "lfp-epsilon", engine: str = "auto", **kwargs: Any
) -> dict[str, Tensor]:
    """Gradients under feedback; the model is unwrapped again."""
    lfpgraph.wrap(model, composite, engine=engine)
    try:
        return gradients(model, *args, **kwargs)
    finally:
        lfpgraph.unwrap(model)


def enter(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> None:
    """Work in a folder whose module is imported anew."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop(module, None)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["lfpgraph", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
        raise SystemExit(0)
    return int(stop.value.code or 0)


def secant_slope(f: Callable[[Tensor], Tensor], x: Tensor, most: float = 1.0) -> Tensor:
    """What `lfp` takes for the slope of a step f at x, by hand: secants, of which the one of width h weighs 1 / h.

    `most` is the largest spread of x that counts.
    """
    widths = (0.55, 1.7, 5.5, 17.0)
    spread = min(x.std(correction=0).item(), most)
    slopes = [(f(x + h) - f(x - h)) / (2 * h) for h in (width * spread for width in widths)]
    return sum(slope / width for slope, width in zip(slopes, widths)) / sum(1 / width for width in widths)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """What jobs that run at once return, or raise."""
    found: list[Any] = [None] * len(jobs)

    def run(place: int) -> None:
        try:
            found[place] = jobs[place]()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return found
