"""A run that goes as the run before it went, throughout: nothing is noted but the few things that its plan looks at."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from ..arrivals.watch import Watch, watching
from ..bridges import LARGE
from ..interception import hide, show
from ..notes import NameLeaf, alias_of, is_over, version_of
from ..parameters import Scale, note_second
from ..record import Record
from ..schedule import Schedule
from .aliases import Met, hold
from .checkpoints import record_again
from .expected import Scaled
from .factors import LoneFactor, is_usual
from .modules import OneOperation, chained
from .steps import ANOTHER, note_made

__all__ = ["Replay"]

_grad = torch.is_grad_enabled
_transform = torch._C._functorch.peek_interpreter_stack
_autocast = torch._C._is_any_autocast_enabled


class Replay:
    """A run for as long as it repeats an expected one; what `interception.Recorder` asks for.

    From the first operation on that is another one, it goes on as a `Record` of all that has run.

    Args:
        schedule: the expected run, one that is `simple`.
        name_leaf, root: as of a record.
        watch: is told which feedback is on its way to which parameter.

    Attributes:
        edges, shapes, kept: as of a record, by number; aliases: of leaves; versions: of those that autograd does not follow.
        met: of the steps that have met what the run before met there, that.
        tensors: by number, what the run has found, and weak references to what it has made.
        done: how many steps have run. path: of the module whose call is running.
    """

    def __init__(self, schedule: Schedule, name_leaf: NameLeaf, root: str, watch: Watch) -> None:
        self.schedule, self.simple, self.name_leaf, self.watch = schedule, schedule.simple, name_leaf, watch
        self.path = self.root = root
        self.done, count = 0, self.simple.count
        self.edges: list[Any] = [None] * count
        self.tensors: list[Any] = [None] * count
        self.shapes: list[Any] = [None] * count
        self.kept: list[Tensor | None] = [None] * count
        self.aliases: dict[int, Tensor] = {}
        self.versions: dict[int, int] = {}
        self.met: list[list[Met]] = []
        self._scaled: list[tuple[Tensor, Scaled]] = []
        self._record: Record | None = None
        self._started = torch._C._autograd._get_sequence_nr()

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and compare it with the one that is expected."""
        record = self._record
        if record is None:
            steps, done = self.simple.steps, self.done
            if done < len(steps) and not kwargs and _grad() and _transform() is None and not _autocast():
                step = steps[done]
                if step.op is op and (out := step.again(self, args)) is not ANOTHER:
                    return out
            record = self.record()
        record.path = self.path
        return record.run(op, args, kwargs)

    def again(self) -> None:
        """Let a checkpoint around the step at hand record what it runs again."""
        record_again(self, partial(Record, self.name_leaf), (), {})

    def at_once(self, known: OneOperation, own: dict[str, Any], args: tuple[Any, ...], unseen: bool = False) -> Any:
        """The result of a module whose forward is one operation, if that is the expected one; else ANOTHER.

        With `unseen`, nobody records what is run here.
        """
        steps, done = self.simple.steps, self.done
        if self._record is not None or done == len(steps) or steps[done].op is not known.op:
            return ANOTHER
        if not _grad() or _transform() is not None or _autocast() or (given := known.arguments(own, args)) is None:
            return ANOTHER
        if unseen:
            return steps[done].again(self, given, known.function)
        hide()
        try:
            return steps[done].again(self, given, known.function)
        finally:
            show()

    def along(
        self, model: nn.Module, stand_in: Any, args: Sequence[Any], kwargs: Any
    ) -> tuple[list[nn.Module] | None, Any]:
        """Run the first of a chain of modules, without a call of each, as far as they are the expected operations.

        Nobody records meanwhile.

        Args:
            model: which may be such a chain. stand_in: in place of its call; None if it is not that which runs.

        Returns:
            The modules that are left to run, None where it is no chain; and what the first of them is given.
        """
        left = chained(model) if stand_in is not None and len(args) == 1 and not kwargs else None
        if not left:
            return None, None
        x = args[0]
        while left:
            own = vars(left[0])
            part: Any = own.get("_call_impl")
            known = getattr(part, "known", None)
            if known is None or part.module is not left[0] or part.wrapping is not stand_in.wrapping:
                break
            self.path = part.whole_path
            out = self.at_once(known, own, (x,), True)
            if out is ANOTHER:
                break
            x = out
            del left[0]
        self.path = self.root
        return left, x

    def meet(self, number: int, x: Tensor) -> bool:
        """Whether a tensor that the run has not met is what was found in its place; it is met then."""
        simple, shape = self.simple, x.shape
        found = simple.scales.get(number)
        if found is None or found[0] is not x or found[1] != shape or found[2] is not x.dtype or not x.requires_grad:
            if not self._is_found(number, x):
                return False
            found = simple.scales.get(number)
        if found is not None and (number not in simple.bare or any(a.compares for a in watching(x))):
            self.aliases[number] = alias = x[...]
            self.edges[number] = alias.grad_fn, 0
            self._scaled.append((alias, found))
        self.tensors[number], self.shapes[number] = x, shape
        if not x.requires_grad:
            self.versions[number] = version_of(x)
        if number in self.schedule.kept_values:
            if not is_usual(x, LARGE):
                return False
            self.kept[number] = x.detach()
        return True

    def hold(self, args: tuple[Any, ...], places: list[tuple[int, int]]) -> list[Met] | None:
        """What the next run takes a step's own parameters by; nothing while their first gradients are compared."""
        bare, scales = self.simple.bare, self.simple.scales
        found = [(i, n, args[i], None if n in bare else scales[n].scale) for i, n in places]
        if any(scale is None and a.compares for _, _, x, scale in found for a in watching(x)):
            return None
        if any(
            type(x) not in (Tensor, nn.Parameter) for _, _, x, _ in found
        ):  # made of others, it has no memory of its own
            return None
        return hold(found)

    def _is_found(self, number: int, x: Tensor) -> bool:
        """The same of a parameter that is another tensor than in the run before, or of what is none."""
        simple = self.simple
        name, dtype, dims, follows = simple.leaves[number]
        if x.requires_grad is not follows or x.dtype is not dtype or x.dim() != dims or x.grad_fn is not None:
            return False
        if x.layout is not torch.strided or is_over(x) or any(x is met for met in self.tensors):
            return False
        if self.name_leaf(x) != name:
            return False
        how = simple.parameters.get(number)
        if how is not None:
            scale = Scale(self.schedule.plan, how, x, x.shape, self.watch)
            hooks = {0: scale.at_alias} if x.numel() < LARGE else None
            simple.scales[number] = Scaled(x, x.shape, dtype, scale, hooks)
        return True

    def record(self) -> Record:
        """The record of all that has run so far, as which the run goes on."""
        record = self._record
        if record is not None:
            return record
        self._record = record = Record(self.name_leaf, self.schedule, self.root)
        record.started, record.path = self._started, self.path
        aliases = {n: given for met in self.met for _, n, x, _, _, given in met if given is not x} | self.aliases
        made = {step.number: step for step in self.simple.steps[: self.done]}
        for number, x in enumerate(self.tensors):
            if x is None:
                break
            step = made.get(number)
            if step is None:
                frozen = self.simple.leaves[number][3] and not x.requires_grad  # since the run has met it
                if frozen:
                    x.requires_grad_()
                record._leaf(x, aliases.get(number))
                if number in self.versions:
                    record._versions[id(x)] = self.versions[number]
                if number in self.simple.parameters and number not in aliases:  # an operation has read it itself
                    edge: Any = alias_of(x).grad_fn.next_functions[0]  # type: ignore[union-attr]
                    record.edges[edge] = number
                    record.also[number].append(edge)
                    for arrival in watching(x):
                        arrival.promised += 1
                if frozen:
                    x.requires_grad_(False)
            else:
                note_made(record, x, self.shapes[number], step.dtype, self.edges[number], self.kept[number])
        record.steps_done = self.done
        return record

    def amend(self, tensors: Sequence[Tensor]) -> bool:
        """Give the run its feedback, if it has ended as the expected one with these outputs; else say that it has not."""
        edges, kept, simple = self.edges, self.kept, self.simple
        if self._record is not None or self.done != len(simple.steps):
            return False
        _, outputs, ends = self.schedule.around
        if len(tensors) == 1 == len(outputs):
            edge = edges[outputs[0]]
            if edge is None or tensors[0].grad_fn is not edge[0] or tensors[0].output_nr != edge[1]:
                return False
        elif tuple(dict.fromkeys(self._number(x, outputs) for x in tensors if x.requires_grad)) != outputs:
            return False
        if simple.unread and tuple(n for n in simple.unread if self._is_held(n)) != ends:
            return False
        for alias, (_, _, _, scale, hooks) in self._scaled:
            node: Any = alias.grad_fn
            if hooks is None:
                node.register_prehook(scale.before)
            else:
                alias._backward_hooks = hooks  # `register_hook` without its handle
                node._register_hook_dict(alias)
        if not simple.factors:
            for number in outputs:
                node, slot = edges[number]
                note_second(node, slot, self.watch)
        carrier = _local.carrier
        for number, factor in simple.factors:
            node, slot = edges[number]
            hook = LoneFactor(slot, kept[factor.measure], factor.epsilon, factor.positive, self.watch)
            for n in simple.direct[number]:
                if n not in self.aliases:
                    hook.told += watching(self.tensors[n])
            if slot == 0 and self.tensors[number]() is None and sys.getrefcount(node) == _MINE:
                carrier._backward_hooks = {0: hook.of_one}
                node._register_hook_dict(carrier)
            else:
                node.register_prehook(hook)
        carrier._backward_hooks = None
        return True

    def _number(self, x: Tensor, among: Sequence[int]) -> int:
        edge = x.grad_fn, x.output_nr
        return next((n for n in among if self.edges[n] == edge), -1)

    def _is_held(self, number: int) -> bool:
        x = self.tensors[number]()
        return x is not None and (x.grad_fn, x.output_nr) == self.edges[number]

    def close(self) -> None:
        """Let go of all."""
        if self._record is not None:
            self._record.close()
        vars(self).clear()


# Note [A hook on a tensor that is gone]: torch takes a fifth of the time for a hook on a tensor that it takes for one on a
# node. The two differ for those who hold the tensor or the node alone: their own hooks, and gradients asked for there, come
# in between. Where nobody does, a hook goes by way of any other tensor.
class _Local(threading.local):
    def __init__(self) -> None:
        self.carrier = torch.empty(0, device="cpu")


_local = _Local()
_MINE = 3  # references to a node that nobody else holds: of `edges`, of a variable, of the question
