"""PyTorch's own databases of operations and modules: each sample as a tiny model, against plain autograd."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lfpgraph
from lfpgraph import Composite, Ruleset
from lfpgraph.errors import LfpGraphError, NoRuleError

__all__ = ["CLOSE", "RECORDED", "Outcome", "differentiable", "module_outcomes", "modules", "outcomes"]

CLOSE = 1e-10
Signals = dict[int, Tensor]
# The true gradient by way of the recorder: another module's ruleset keeps the engine from leaving the run alone.
RECORDED = Composite(
    "recorded", Ruleset(rules=False, epsilon=0.0, scale="signal"), overrides=(("no.such.module", Ruleset()),)
)


class OneCall(nn.Module):
    """A call of a function or module on tensors that a parameter has been multiplied into.

    Args:
        process: makes of the results what has a gradient.

    Attributes:
        places: which of the flat arguments `forward` takes: those that require a gradient.
    """

    def __init__(self, function: Any, args: Any, kwargs: Any, process: Any) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.function, self.process = function, process
        leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        self.leaves = [None if i in self.places else x for i, x in enumerate(leaves)]

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self.leaves)
        for i, x in zip(self.places, tensors):
            leaves[i] = x * self.one
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.process(self.function(*args, **kwargs))


@dataclass
class Outcome:
    """What became of one sample.

    Attributes:
        name: the operation's or module's name. number: the sample's.
        gradient: "equal", "differs by ...", "refused" (an error of ours) or an exception.
        feedback: "finite", "finite, no rule" (by the true derivative), "refused", "not finite" or an exception.
    """

    name: str
    number: int
    gradient: str
    feedback: str


def differentiable() -> list[Any]:
    """The operations of the database that have autograd in float64 on the CPU."""
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db

    # For each operation it looks through the whole stack for a test of torch's own, reading sources: half of the time.
    common_utils.extract_test_fn = lambda: None

    return [op for op in op_db if op.supports_autograd and torch.float64 in op.dtypes]


def modules() -> list[Any]:
    """The modules of the database that take float64 on the CPU."""
    from torch.testing._internal.common_modules import module_db

    return [info for info in module_db if torch.float64 in info.dtypes]


def outcomes(op: Any, most: int | None = 2, engine: str = "live", composite: str = "lfp") -> Iterator[Outcome]:
    """Run the first samples of an operation, or all; those that plain autograd cannot take are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # All at once: what makes them is over then, and not closed by the garbage collector in the midst of a later trace.
        samples = list(itertools.islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), most))
        for number, sample in enumerate(samples):
            args, process = (sample.input, *sample.args), sample.output_process_fn_grad
            yield from _outcome(op.formatted_name, number, op, args, sample.kwargs, process, engine, composite)


def module_outcomes(info: Any, most: int | None = 2, engine: str = "live") -> Iterator[Outcome]:
    """Run the first samples of a module, or all, in training and, where that differs, in eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for training in (True, False) if info.train_and_eval_differ else (True,):
            samples = info.module_inputs_func(info, "cpu", torch.float64, requires_grad=True, training=training)
            for number, sample in enumerate(itertools.islice(samples, most)):
                built, given = sample.constructor_input, sample.forward_input
                if given is None:
                    continue
                torch.manual_seed(0)
                module = info.module_cls(*built.args, **built.kwargs).to(torch.float64).train(training)
                name = info.name + ("" if training else " (eval)")
                yield from _outcome(name, number, module, given.args, given.kwargs, lambda x: x, engine)


def _outcome(
    name: str, number: int, function: Any, args: Any, kwargs: Any, process: Any, engine: str, composite: str = "lfp"
) -> Iterator[Outcome]:
    model = OneCall(function, args, kwargs, process)
    given = [pytree.tree_leaves((args, kwargs))[i] for i in model.places]

    def step(model: Any, signals: Signals | None) -> tuple[list[Tensor | None], Signals]:
        return _step(model, [x.detach().clone().requires_grad_() for x in given], signals)

    try:
        expected, signals = step(copy.deepcopy(model), None)
    except Exception:
        return
    if signals:
        recorded = lfpgraph.wrap(copy.deepcopy(model), "gradient" if engine == "static" else RECORDED, engine=engine)
        wrapped = functools.partial(lfpgraph.wrap, composite=composite, engine=engine)
        yield Outcome(
            name,
            number,
            _gradient(lambda: step(recorded, signals)[0], expected),
            _feedback(lambda **kw: step(wrapped(copy.deepcopy(model), **kw), signals)[0], expected),
        )


def _step(model: Any, inputs: list[Tensor], signals: Signals | None) -> tuple[list[Tensor | None], Signals]:
    """The gradients of the parameters and the inputs, and the signals that the outputs were given."""
    torch.manual_seed(0)
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
    return [x.grad for x in (*model.parameters(), *inputs)], signals


def _gradient(step: Callable[[], list[Tensor | None]], expected: list[Tensor | None]) -> str:
    try:
        found = step()
    except LfpGraphError as error:
        return f"refused: {error}"
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


def _feedback(step: Callable[..., list[Tensor | None]], expected: list[Tensor | None]) -> str:
    suffix = ""
    try:
        try:
            found = step(on_missing="error")
        except NoRuleError:
            suffix = ", no rule"
            found = step()
    except LfpGraphError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finite = all(f is None or math.isfinite(float(f.to_dense().abs().sum())) for f in found)
    was_finite = all(g is None or math.isfinite(float(g.to_dense().abs().sum())) for g in expected)
    return ("finite" if finite or not was_finite else "not finite") + suffix
