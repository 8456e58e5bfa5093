"""captum: our relevance as one of its attribution methods."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

from ..composites.composite import Composite
from ..explain.attribution import attribute

__all__ = ["Relevance"]


class Relevance(Attribution):
    """Relevance by our rules in the shape of captum's methods, so that its metrics and pictures take it.

    Args:
        model, composite: as for `lfpgraph.attribute`; options go to it as well.
    """

    def __init__(self, model: nn.Module, composite: str | Composite | None = None, **options: Any) -> None:
        super().__init__(model)
        self.composite, self.options = composite, options

    def attribute(
        self, inputs: Any, target: Any = None, baselines: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """Relevance in the structure of the inputs: a tensor, or a tuple of them.

        Args:
            inputs, target, baselines, additional_forward_args: as in captum; a baseline of several inputs is a tuple.
        """
        many, more = _tuple(inputs), () if additional_forward_args is None else _tuple(additional_forward_args)
        given = tuple(x.detach() if isinstance(x, Tensor) else x for x in (*many, *more))
        start = baselines if isinstance(baselines, int | float | None) else (*_tuple(baselines), *more)
        how = {**self.options, **({} if baselines is None else {"baseline": start})}
        found = attribute(self.forward_func, given, target, self.composite, **how)[: len(many)]
        return found if isinstance(inputs, tuple) else found[0]


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
