"""What the command line is given by name, checked: `module:function`, losses and optimizers, and data in several forms."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ..demo.data import Arrays
from ..errors import LfpGraphError, TargetError, one_line

__all__ = ["call_target", "datasets", "examples", "load_target", "loss_named", "optimizer_named", "own_code"]


def load_target(target: str) -> Callable[[], Any]:
    """The function that `module:function` names; the working directory is searched first.

    Raises:
        TargetError: no such module or function, or the module fails on import.
    """
    module_name, _, function_name = target.partition(":")
    if not module_name or not function_name:
        raise TargetError(f"{target!r} is not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TargetError(f"{target!r}: no module named {error.name!r}; run from the folder that holds it") from error
    except (Exception, SystemExit) as error:  # a script may end Python when it is imported
        raise TargetError(
            f"{target!r}: importing {module_name} failed: {type(error).__name__}: {one_line(error, 400)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))) or "none"
        raise TargetError(f"{target!r}: {module_name} has no function {function_name!r}; it has: {names}")
    return function


def call_target(function: Callable[[], Any], target: str) -> Any:
    """What the user's function returns.

    Raises:
        TargetError: it fails, or wants arguments, or is a model itself.
    """
    if isinstance(function, nn.Module):
        raise TargetError(f"{target!r} is a model; name a function that returns one, so that each run has its own")
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise TargetError(f"{target!r} failed: {type(error).__name__}: {one_line(error, 400)}") from error


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Where the user's model, data and loss are used: an error that is none of ours becomes one, and says where it arose.

    Raises:
        TargetError: in place of it.
    """
    try:
        yield
    except LfpGraphError:
        raise
    except (Exception, SystemExit) as error:
        others = [Path(torch.__file__).parent, Path(__file__).parents[1]]
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [f"{path.name}:{line}" for path, line in frames if not any(map(path.is_relative_to, others))]
        place = f" ({own[-1]})" if own else ""
        raise TargetError(f"{what} failed{place}: {type(error).__name__}: {one_line(error, 400)}") from error


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of torch.nn.functional; `mse` is `mse_loss`.

    Raises:
        TargetError: no such loss that takes outputs and labels alone; the message lists the known ones.
    """
    known = {}
    for key, value in vars(nn.functional).items():
        if callable(value) and key.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits")) and key[0] != "_":
            wanted = [p for p in inspect.signature(value).parameters.values() if p.default is p.empty]
            if len([p for p in wanted if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]) == 2:
                known[key] = value
    for candidate in (name, f"{name}_loss"):
        if candidate in known:
            return known[candidate]
    raise TargetError(f"torch.nn.functional has no loss {name!r}; known: {', '.join(sorted(known))}")


def optimizer_named(name: str) -> str:
    """The name of a class of torch.optim that steps without a closure.

    Raises:
        TargetError: no such class; the message lists the known ones.
    """
    base = torch.optim.Optimizer
    classes = {k: v for k, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, base)}
    known = sorted(set(classes) - {"LBFGS", "Muon", "Optimizer", "SparseAdam"})
    if name not in known:
        raise TargetError(f"torch.optim has no optimizer {name!r} that train can use; known: {', '.join(known)}")
    return name


def datasets(value: Any, target: str) -> tuple[Arrays, Arrays]:
    """Training and test pairs of tensors from two datasets of (input, label) or two pairs of arrays.

    Raises:
        TargetError: anything else; inputs and labels that are not equally many; none at all.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TargetError(f"{target!r} must return (train, test), not {type(value).__name__}")
    return _arrays(value[0], target), _arrays(value[1], target)


def examples(value: Any, target: str) -> tuple[Any, Any]:
    """As `datasets`, for models of any inputs: a part may be a DataLoader, inputs a tuple or a dict of arrays.

    Raises:
        TargetError: anything else.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TargetError(f"{target!r} must return (train, test), not {type(value).__name__}")
    return _examples(value[0], target), _examples(value[1], target)


def _examples(part: Any, target: str) -> Any:
    if isinstance(part, DataLoader):
        return part
    pair = isinstance(part, tuple | list) and len(part) == 2
    if not pair and hasattr(part, "__getitem__") and hasattr(part, "__len__") and len(part) > 0:
        first = part[0]
        if isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[0], tuple | Mapping):
            part, pair = default_collate([part[i] for i in range(len(part))]), True
    if not pair or not _are_several(part[0]):
        return _arrays(part, target)
    items = part[0].items() if isinstance(part[0], Mapping) else enumerate(part[0])
    pairs = {key: _arrays((value, part[1]), target) for key, value in items}
    inputs = {key: x for key, (x, _) in pairs.items()}
    return (inputs if isinstance(part[0], Mapping) else tuple(inputs.values())), next(iter(pairs.values()))[1]


def _are_several(inputs: Any) -> bool:
    """Whether inputs are arrays for several arguments of a model: in a dict, or in a tuple."""
    if isinstance(inputs, Mapping):
        return len(inputs) > 0
    return isinstance(inputs, tuple | list) and len(inputs) > 0 and all(getattr(x, "ndim", 0) for x in inputs)


def _arrays(part: Any, target: str) -> Arrays:
    try:
        if isinstance(part, tuple | list) and len(part) == 2:
            x, y = part
        elif hasattr(part, "__getitem__") and hasattr(part, "__len__") and len(part) > 0:
            x, y = zip(*(part[i] for i in range(len(part))))
            x, y = torch.stack([torch.as_tensor(v) for v in x]), torch.stack([torch.as_tensor(v) for v in y])
        else:
            raise TargetError(f"{target!r} must return two datasets or two (x, y) pairs, not {type(part).__name__}")
        x, y = torch.as_tensor(x), torch.as_tensor(y)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TargetError(f"{target!r}: inputs and labels must be numbers of equal shapes: {error}") from error
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
        raise TargetError(
            f"{target!r}: inputs and labels must be equally many and not none: {list(x.shape)} and {list(y.shape)}"
        )
    y = y.float() if y.dtype == torch.float64 else y if y.is_floating_point() else y.long()
    return x.float() if x.dtype == torch.float64 else x, y
