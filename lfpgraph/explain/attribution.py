"""`attribute`: relevance of a model's inputs, by the rules and on the walk that train by reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..errors import AttributionError, check_choice
from ..graph.calls import arguments_of, check_module, flatten_input
from .derivatives import refuse_transforms
from .explainer import explainer_of
from .found import Found
from .paths import along_path
from .targets import Targets, has_function

__all__ = ["Attribution", "attribute"]

INTEGRATED = "integrated-gradients"


@dataclass
class Attribution:
    """Relevance of a model's inputs and of what else was asked for, in units of the explained output.

    Attributes:
        inputs: in the structure of the inputs; see `attribute`.
        nodes: of recorded modules and nodes, by the names given.
        parameters: of each parameter, of its shape, summed over the batch; empty unless asked for.
        explained: the value that was explained, for each sample [n].
        output: the model's first float output.
        composite: the name of the rules.
    """

    inputs: Any
    nodes: dict[str, Tensor]
    parameters: dict[str, Tensor]
    explained: Tensor
    output: Tensor
    composite: str = ""


def attribute(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    composite: str | Composite | None = None,
    *,
    record: str | Sequence[str] = (),
    parameters: bool = False,
    details: bool = False,
    baseline: Any = None,
    steps: int | None = None,
    positions: str | None = None,
    condition: Mapping[str, Any] | None = None,
    on_missing: str = "derive",
    fallback: str = "error",
    differentiable: bool = False,
) -> Any:
    """Relevance of every input for an output, in one forward and one backward pass over the whole batch.

    The output's own value is handed back, rule by rule, to the inputs; they add up to it but for what the rules give to
    biases, stabilizers and the like. The model is not changed: not its modes, parameters, gradients, buffers or forward.
    It runs in the modes it is in, so call `model.eval()` first. The walk is traced at the first call of its kind and kept.

    Args:
        model: any `nn.Module`, wrapped or not.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        target: what is explained. A class index (of the last dimension); a tensor or list of them, one for each sample;
            a tuple of indices behind the batch, such as (position, token); "predicted"; `Contrast(a, b)`; a float tensor
            of weights of the output's shape; or a function of the model's output that returns a tensor, whose derivative
            is taken. None where the model returns one value for each sample. `Targets([...])` explains each of several:
            the model runs once, and all that is returned has a first dimension of targets.
        composite: the rules; a name (`lfpgraph.composite_names()`) or a `Composite`. None takes what docs/faithfulness.md has
            found best in one pass: "deeplift" for float inputs, "cp-lrp" for token ids, "attnlrp" where nodes, parameters
            or positions are wanted; with steps "gradient-x-input". "integrated-gradients" is that with 32 steps.
        record: paths of modules (whose output is meant) or names of graph nodes, whose relevance is wanted too.
        parameters: relevance of parameters is wanted too.
        details: return an `Attribution` in any case.
        baseline: a reference point x0, one number or inputs like those given: relevance is then the signals (reward per
            unit of input) times x - x0, for what is explained against x0. None is 0, the rules' own reference point. For token
            ids x is the embedding, and ids in the baseline (of padding or a mask, say) stand for theirs.
        steps: average the signals over so many points of the straight path from x0 to x (midpoints):
            `R = (x - x0) * mean_k s(x0 + (k + 1/2) / steps * (x - x0))`. With "gradient-x-input" these are integrated
            gradients (Sundararajan et al. 2017), for which the name "integrated-gradients" takes 32. It costs so many
            passes more. Rules that look at no input (flat, w-square, box) have no bounded signal where an input is 0,
            so take them without baseline and steps.
        positions: "tokens" hands the relevance of position embeddings and rotary angles to the tokens at their places, so that
            tokens have all of it (PA-LRP; Bakish et al. 2025). Angles take half of each product (with `attnlrp`). None leaves it
            to the positions.
        condition: by module, numbers of channels (dimension 1, of [n, length, features] the features) or a mask: relevance that
            passes the module's output through these alone (CRP; Achtibat et al. 2023). Other channels of the same modules run
            the same program.
        on_missing: as for `lfpgraph.wrap`. fallback: as for `lfpgraph.trace`.
        differentiable: relevance has a derivative, by the inputs and by the model's parameters, for a penalty on explanations
            (Ross et al. 2017), say. Otherwise it has none. What the model detaches counts as if it did not.

    Returns:
        Relevance in the structure of `inputs`: for a tensor a tensor, for a tuple a tuple, for a dict a dict. A float
        input has relevance of its shape, token ids [n, length] that of their embeddings summed over features. Other
        inputs have None in a tuple and are left out of a dict. With record, parameters or details an `Attribution`.

    Raises:
        AttributionError: the target does not fit the output, a recorded name does not exist, or an unknown option.
        InputError: nothing among the inputs can have relevance, or the model itself does not run on them.
        NonFiniteError: what is explained is NaN or infinite. TraceError, NoRuleError: as for `wrap`.
    """
    check_module(model, "attribute", AttributionError)
    names = tuple(record) if isinstance(record, list | tuple) else (record,)
    args, kwargs = arguments_of(inputs, AttributionError)
    leaves = flatten_input(args, kwargs)[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    refuse_transforms(tensors, differentiable)
    for option, value in (("parameters", parameters), ("details", details), ("differentiable", differentiable)):
        check_choice(option, value, (True, False), AttributionError)
    if all(t.is_meta for t in (*tensors, *model.parameters())):
        raise AttributionError(
            "tensors without memory (device meta) have no relevance; load the model's weights and give inputs on its device"
        )
    options = Options(on_missing, fallback, error=AttributionError)
    if composite is None:
        composite = _best(leaves, bool(names) or parameters or positions, steps is not None)
    if isinstance(composite, str) and composite == INTEGRATED:
        composite, steps = "gradient-x-input", 32 if steps is None else steps
    compares = steps is not None or baseline is not None or get_composite(composite).compares
    if positions is not None:
        check_choice("positions", positions, ("tokens",), AttributionError)
        if compares:
            raise AttributionError(
                'positions="tokens" goes with composites that look at one run, without baseline and steps: between two runs '
                "positions do not differ"
            )
    if differentiable and has_function(target):
        raise AttributionError(
            "with differentiable=True the target must be an index, a Contrast or weights, not a function, whose own derivative "
            "would be taken as constant"
        )
    if condition is not None and not isinstance(condition, Mapping):
        raise AttributionError(f"condition={condition!r} must be a dict of modules' names and channels")
    several = isinstance(target, Targets)
    if compares:
        if names or parameters:
            raise AttributionError(
                "a baseline and a path (so integrated gradients) give relevance to inputs alone; leave record and "
                "parameters out"
            )
        start = 0.0 if baseline is None else baseline
        if not isinstance(start, int | float):
            start = arguments_of(start, AttributionError, "a baseline that is no number")
        found = along_path(model, (args, kwargs), target, composite, start, steps, options, condition, differentiable)
    else:
        explainer = explainer_of(
            model, composite, options, names, parameters, False, bool(positions), condition, differentiable, several
        )
        found = explainer.explain(model, args, kwargs, target, None, condition)
    relevance = _like(inputs, args, kwargs, found, (len(target),) if several else ())
    if not (names or parameters or details):
        return relevance
    explained = sum(
        (o * s).flatten(s.dim() - o.dim() + 1).sum(-1) if o.dim() > 1 else o * s
        for o, s in zip(found.outputs, found.signals)
        if s is not None and o.dim() > 0
    )
    rules = get_composite(composite).name
    return Attribution(relevance, found.nodes, found.parameters, explained, found.explained, rules)  # type: ignore[arg-type]


def _best(leaves: Sequence[Any], inside: Any, along: bool) -> str:
    """The composite that has been measured as most faithful for a question, in one pass or along a path."""
    if along:
        return "gradient-x-input"
    if inside:
        return "attnlrp"
    kinds = {leaf.is_floating_point() for leaf in leaves if isinstance(leaf, Tensor) and leaf.dtype != torch.bool}
    return "deeplift" if kinds == {True} else "cp-lrp"


def _like(inputs: Any, args: Any, kwargs: Any, found: Found, targets: tuple[int, ...]) -> Any:
    """Relevance in the structure of the inputs, behind a dimension of targets if there are several."""
    leaves, spec = flatten_input(args, kwargs)
    count = iter(range(len(leaves)))
    filled = [found.inputs.get(next(count)) if isinstance(leaf, Tensor) else None for leaf in leaves]
    for i, leaf in enumerate(leaves):
        if filled[i] is None and isinstance(leaf, Tensor) and leaf.is_floating_point():
            nothing = torch.zeros_like(leaf)  # no relevance has reached it
            filled[i] = nothing.expand(*targets, *leaf.shape).clone() if targets else nothing
    new_args, new_kwargs = pytree.tree_unflatten(filled, spec)
    if isinstance(inputs, Tensor):
        return new_args[0]
    if isinstance(inputs, Mapping):
        return {k: v for k, v in new_kwargs.items() if pytree.tree_any(lambda leaf: leaf is not None, v)}
    return new_args
