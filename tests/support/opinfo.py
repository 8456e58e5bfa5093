"""PyTorch's own database of operations (OpInfo): each sample as a tiny model, live, against plain autograd."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph
from lfpgraph import Composite, Ruleset
from lfpgraph.errors import LfpGraphError

__all__ = ["CLOSE", "RECORDED", "Outcome", "differentiable", "outcomes"]

CLOSE = 1e-10
# The true gradient by way of the recorder: another module's ruleset keeps the engine from leaving the run alone.
RECORDED = Composite(
    "recorded", Ruleset(rules=False, epsilon=0.0, scale="signal"), overrides=(("no.such.module", Ruleset()),)
)


class OneOperation(nn.Module):
    """An operation on tensors that a parameter has been multiplied into.

    Args:
        op: the OpInfo. leaves, spec: the sample's arguments, flat, with None for each tensor that follows the parameter.
    """

    def __init__(self, op: Any, sample: Any) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.op, self.process = op, sample.output_process_fn_grad
        self.leaves, self.spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
        self.places = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor) and x.requires_grad]

    def inputs(self) -> list[Tensor]:
        """Fresh leaves for `forward`."""
        return [self.leaves[i].detach().clone().requires_grad_() for i in self.places]

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self.leaves)
        for i, x in zip(self.places, tensors):
            leaves[i] = x * self.one
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.process(self.op(*args, **kwargs))


@dataclass
class Outcome:
    """What became of one sample.

    Attributes:
        name: the operation's name. number: the sample's.
        gradient: "equal", "differs by ..." or an exception.
        feedback: "finite", "refused" (an error of ours), "not finite" or an exception.
    """

    name: str
    number: int
    gradient: str
    feedback: str


def differentiable() -> list[Any]:
    """The operations of the database that have autograd in float64 on the CPU."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if op.supports_autograd and torch.float64 in op.dtypes]


def outcomes(op: Any, most: int = 2) -> Iterator[Outcome]:
    """Run the first samples of an operation; those that plain autograd cannot take are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = op.sample_inputs("cpu", torch.float64, requires_grad=True)
        for number, sample in enumerate(itertools.islice(samples, most)):
            model = OneOperation(op, sample)
            try:
                expected, signals = _step(copy.deepcopy(model), None)
            except Exception:
                continue
            if signals:
                yield Outcome(
                    op.formatted_name, number, _gradient(model, expected, signals), _feedback(model, expected, signals)
                )


def _step(model: OneOperation, signals: dict[int, Tensor] | None) -> tuple[list[Tensor | None], dict[int, Tensor]]:
    """The gradients of the parameter and the inputs, and the signals that the outputs were given."""
    torch.manual_seed(0)
    inputs = model.inputs()
    outputs = [x for x in pytree.tree_leaves(model(*inputs)) if isinstance(x, Tensor)]
    if signals is None:
        generator = torch.Generator().manual_seed(1)
        signals = {
            i: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
            for i, x in enumerate(outputs)
            if x.requires_grad
        }
    if signals:
        torch.autograd.backward([outputs[i] for i in signals], list(signals.values()))
    return [model.one.grad, *(x.grad for x in inputs)], signals


def _gradient(model: OneOperation, expected: list[Tensor | None], signals: dict[int, Tensor]) -> str:
    try:
        found, _ = _step(lfpgraph.wrap(copy.deepcopy(model), RECORDED, engine="live"), signals)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    worst = 0.0
    for a, b in zip(found, expected):
        if (a is None) != (b is None):
            return "differs by a gradient that is there or not"
        if a is not None and b is not None and a.numel():
            a, b = a.to_dense().nan_to_num(), b.to_dense().nan_to_num()
            worst = max(worst, float((a - b).abs().max()) / (float(b.abs().max()) or 1.0))
    return "equal" if worst <= CLOSE else f"differs by {worst:.2g}"


def _feedback(model: OneOperation, expected: list[Tensor | None], signals: dict[int, Tensor]) -> str:
    try:
        found, _ = _step(lfpgraph.wrap(copy.deepcopy(model), engine="live"), signals)
    except LfpGraphError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finite = all(f is None or math.isfinite(float(f.to_dense().abs().sum())) for f in found)
    was_finite = all(g is None or math.isfinite(float(g.to_dense().abs().sum())) for g in expected)
    return "finite" if finite or not was_finite else "not finite"
