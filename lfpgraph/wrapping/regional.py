"""wrap(regional=True): the model wrapped part by part, with the same programs for all blocks that are alike.

A deep model is one block many times. Here each block is wrapped by itself, and blocks of one kind share their programs, so
tracing and compiling take the time of one block, however many there are. The model's own forward still calls the blocks one
by one, so everything that acts on single blocks works with feedback too: checkpointing, sharding (FSDP2), hooks.

Between the parts the model's own code runs under autograd. Views, sums and masks there hand signals on as their rules would,
except that no epsilon factor is applied. A parameter used there gets its feedback, `abs(w) * s_w`, by a hook.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..composites.composite import Composite
from ..errors import WrapError
from .stand_in import StandIn

__all__ = ["RegionalForward", "blocks_of", "parts_of"]

log = logging.getLogger("lfpgraph")


def blocks_of(model: nn.Module) -> list[list[str]]:
    """Names of the model's repeated blocks, in one list for each kind.

    Blocks of a kind are children of one module, alike in classes, parameters, buffers and modes. Blocks inside blocks are
    not looked for.
    """
    found: list[list[str]] = []

    def visit(module: nn.Module, dot: str) -> None:
        kinds: dict[Any, list[str]] = defaultdict(list)
        for name, child in module.named_children():
            if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                kinds[_kind(child)].append(dot + name)
        alike = [names for names in kinds.values() if len(names) > 1]
        found.extend(alike)
        blocks = {name for names in alike for name in names}
        for name, child in module.named_children():
            if dot + name not in blocks:
                visit(child, f"{dot}{name}.")

    visit(model, "")
    return found


def _kind(module: nn.Module) -> Any:
    """What all blocks of one kind have in common, as far as it can be seen without running them."""
    tensors = tuple(
        (name, tuple(t.shape), t.dtype, t.requires_grad)
        for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        for name, t in named
    )
    modules = tuple((name, type(m), m.training) for name, m in module.named_modules(remove_duplicate=False))
    return tensors, modules


def parts_of(model: nn.Module, blocks: set[str]) -> Iterator[str]:
    """Names of the blocks, and of the largest modules with parameters that hold no block, in the model's order.

    A list or dict of modules is never a part, since it is not called.
    """

    def visit(module: nn.Module, dot: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = dot + name
            holds = any(block.startswith(path + ".") for block in blocks)
            if path in blocks or (not holds and _is_called(child) and any(True for _ in child.parameters())):
                yield path
            else:
                yield from visit(child, path + ".")

    return visit(model, "")


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


class RegionalForward(StandIn):
    """Takes the place of the forward of a model whose parts are wrapped, and runs that forward.

    Args:
        model: the whole model.
        blocks: names of the blocks; None looks for them.
        wrap_part: called with (name, module, the name of the block whose programs it may use, or None).
        composite: gives the rules for the feedback of parameters that no part holds.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: list[str] | None,
        wrap_part: Callable[[str, nn.Module, str | None], Any],
        composite: Composite,
    ) -> None:
        super().__init__(model)
        kinds = blocks_of(model) if blocks is None else _named(model, blocks)
        if not kinds:
            raise WrapError(
                f"{type(model).__name__} has no two blocks alike; name its blocks by regional=[...], or wrap it whole."
            )
        first = {name: names[0] for names in kinds for name in names}
        self.parts = list(parts_of(model, set(first)))
        for name in self.parts:
            leader = first.get(name)
            wrap_part(name, model.get_submodule(name), leader if leader != name else None)
        self.composite = composite
        self.hooks: list[Any] | None = None  # made at the first call; a copy makes its own
        log.info("%s in parts: %s", type(model).__name__, ", ".join(self.parts))

    @property
    def traces(self) -> int:
        """How many programs have been traced, of all parts."""
        return sum(self.model.get_submodule(name).__dict__["forward"].traces for name in self.parts)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.hooks is None:
            self.hooks = list(self._hook_the_rest())
        self.calls += torch.is_grad_enabled()
        return self.original(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "hooks": None}

    def release(self) -> None:
        """Remove the hooks from the parameters that no part holds."""
        for hook in self.hooks or ():
            hook.remove()

    def _hook_the_rest(self) -> Iterator[Any]:
        held = {id(p) for name in self.parts for p in self.model.get_submodule(name).parameters()}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in held and parameter.requires_grad:
                ruleset = self.composite.parameter_ruleset(name)
                scale = functools.partial(
                    ruleset.feedback, parameter, asleep=parameter.dim() > 1 and ruleset.wakes(parameter)
                )
                yield parameter.register_hook(scale)


def _named(model: nn.Module, blocks: list[str]) -> list[list[str]]:
    kinds: dict[Any, list[str]] = defaultdict(list)
    for name in blocks:
        try:
            kinds[_kind(model.get_submodule(name))].append(name)
        except AttributeError:
            raise WrapError(f"{type(model).__name__} has no module named {name!r}.") from None
    return list(kinds.values())
