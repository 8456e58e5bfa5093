"""A model wrapped in parts, with the same programs for all blocks that are alike.

In a deep model most of the layers are one block many times. Here each block is wrapped by itself, and blocks of one kind
share their programs, so tracing and compiling take the time of one block, however many there are. The model's own forward
still calls the blocks one by one, so everything that acts on single blocks works with feedback too: checkpointing, sharding
(FSDP2), hooks.

Between the parts the model's own code runs by the live engine, for which a part is one operation with a backward of its own.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..composites.composite import Composite
from ..engine.options import Options
from ..errors import WrapError
from .calls import Wrapping
from .stand_in import CallStandIn, stand_in_of

__all__ = ["WrappingInParts", "blocks_of", "leaders_of", "parts_of"]

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


def leaders_of(model: nn.Module, blocks: list[str] | None) -> dict[str, str]:
    """For each block the first one like it; blocks=None looks for them.

    Raises:
        WrapError: there are none, or no module has such a name.
    """
    kinds = blocks_of(model) if blocks is None else _named(model, blocks)
    if not kinds:
        raise WrapError(
            f"{type(model).__name__} has no two blocks alike; name its blocks by regional=[...], or wrap it whole."
        )
    return {name: names[0] for names in kinds for name in names}


class WrappingInParts(Wrapping):
    """A wrapped model whose parts are wrapped, each with programs of its own or those of the first block like it.

    Args:
        leaders: for each block the first one like it (see `leaders_of`).

    Attributes:
        parts: names of the parts.
    """

    def __init__(self, model: nn.Module, composite: Composite, options: Options, leaders: dict[str, str]) -> None:
        super().__init__(model, composite, options, "static")
        self.leaders, self.parts = leaders, list[str]()
        self.choice.why = "its parts are wrapped one by one"

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "composite": self.composite, "options": self.options, "leaders": self.leaders}

    def again(self, model: nn.Module) -> Wrapping:
        """The wrapping of a shallow copy of the model, which has the same parts."""
        return WrappingInParts(model, self.composite, self.options, self.leaders)

    def place(self) -> None:
        """Wrap the parts, and stand in for the model's call, as far as that has not been done."""
        if not self.parts:
            self._wrap_parts()
            log.info("%s in parts: %s", type(self.model).__name__, ", ".join(self.parts))
        if stand_in_of(self.model) is None:
            CallStandIn(self.model, "", self).place()
        self._watch_parameters()

    def _wrap_parts(self) -> None:
        """Wrap the parts that are not yet: all at first, later those that have been replaced or added."""
        self.parts = list(parts_of(self.model, set(self.leaders)))
        for name in self.parts:
            part, leader = self.model.get_submodule(name), self.leaders.get(name, name)
            if stand_in_of(part) is not None:
                continue
            own, like = self.composite.within(name), None
            if leader != name and _alike(part, own, self.composite.within(leader)):
                found = stand_in_of(self.model.get_submodule(leader))
                like = None if found is None else found.wrapping.static.programs
            Wrapping(part, own, self.options, "static", name, like, self.watch).place()

    def remove(self) -> None:
        """Undo `place`."""
        for name in self.parts:
            found = stand_in_of(self.model.get_submodule(name))
            if found is not None and found.path == "":
                found.wrapping.remove()
        found = stand_in_of(self.model)
        if found is not None:
            found.remove()
        self.watch.close()

    def _statically(self, part: CallStandIn, args: Any, kwargs: Any) -> Any:
        """Run the model itself, which calls its parts."""
        self._wrap_parts()
        self._watch_parameters()  # hooks of the model (FSDP's) may have put other parameters in place
        self._count("static")
        return self._engine(part).run(part.run_module, args, kwargs)

    def _wrappings(self) -> list[Wrapping]:
        found = [stand_in_of(self.model.get_submodule(name)) for name in self.parts]
        return [stand_in.wrapping for stand_in in found if stand_in is not None]

    @property
    def traces(self) -> int:
        """How many programs have been traced, of all parts."""
        return sum(wrapping.traces for wrapping in self._wrappings())

    def all_plans(self) -> list[Any]:
        """The plans of all that has run so far."""
        return super().all_plans() + [plan for wrapping in self._wrappings() for plan in wrapping.all_plans()]


def _alike(part: nn.Module, own: Composite, other: Composite) -> bool:
    """Whether two composites have the same rules for all modules and parameters of a part."""
    if any(own.parameter_ruleset(n) != other.parameter_ruleset(n) for n, _ in part.named_parameters()):
        return False
    return all(own.ruleset(path) == other.ruleset(path) for path, _ in part.named_modules(remove_duplicate=False))


def _named(model: nn.Module, blocks: list[str]) -> list[list[str]]:
    kinds: dict[Any, list[str]] = defaultdict(list)
    for name in blocks:
        try:
            kinds[_kind(model.get_submodule(name))].append(name)
        except AttributeError:
            raise WrapError(f"{type(model).__name__} has no module named {name!r}.") from None
    return list(kinds.values())
