"""Random modules in live Python, each with a straight twin: the same operations without branches, loops, parts and hooks."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fuzz import BETWEEN_DRAWS, STATE, Writer
from .fuzz_lines import UNARY
from .fuzz_wide import WIDE

__all__ = ["Program", "random_program"]

# Writes that later lines see in {a}, in views of it, and in what it is a view of.
OPEN_WRITES = (
    "{a}[0].mul_(2); {v} = {a} * 1",
    "u = {a}.view(-1); u.add_(0.5); {v} = u * 2",
    "{a}.transpose(0, -1)[0].add_({b}.mean()); {v} = {a}.tanh()",
    "{a}[..., :1].copy_({b}[..., :1]); {v} = {a} + {b}",
    "{a}.diagonal(0, 0, 1).sigmoid_(); {v} = {a}.sum(0)",
    "F.relu({a}, inplace=True); {v} = {a} * 2",
    "{a}.add_({b}); {v} = {b} * {a}",
    "[u.mul_(1.5) for u in ({a}[0], {a}[-1])]; {v} = {a} * 1",
    "{v} = {a}[..., 1:]; {v}.mul_(3)",
    "{v} = {a}.flatten(); {a}.sub_(0.2)",
    "{v} = {a}[:1]; {a}[..., 0] = {b}[..., 0]",
    "{v} = {a}.transpose(0, -1); {v}[0] += {a}.mean()",
    "{a}[{a}[:] > 0.5] = 0.5; {v} = {a} - {b}",
)
VIEWS = (
    "{a}[1:]",
    "{a}[..., :-1]",
    "{a}.view(-1)",
    "{a}.transpose(0, -1)",
    "{a}.unsqueeze({d})",
    "{a}.narrow({d}, 0, 1)",
)
# What a hook makes of an argument or a result: None leaves it.
HOOKS = (None, "{a} * 2", "{a} + {a}.mean()", "{a}.tanh()", "{a}.clone()", "{a}[..., :1] * {a}")


@dataclass
class Part:
    """A submodule: a writer of its lines, whose values x and y are its arguments, and expressions of its hooks."""

    writer: Writer
    result: str
    before: str | None = None
    after: str | None = None
    backward: bool = False  # a backward hook as well

    def source(self, name: str) -> str:
        body = "".join(f"        {line}\n" for line in self.writer.lines)
        return f"class {name}(nn.Module):\n    def forward(self, x, y):\n{body}        return {self.result}\n"


@dataclass
class Step:
    """A statement of the program, and how its straight twin writes it, given the ways that were taken."""

    live: list[str]
    straight: Callable[[Iterator[int]], list[str]]


@dataclass
class Program:
    """A random module. `straight` makes the twin of a call from the ways it took, which the module notes in `way`."""

    seed: int
    inputs: tuple[Tensor, ...]
    state: dict[str, Tensor]
    parts: dict[str, Part] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        parts = "".join(part.source(name) for name, part in self.parts.items())
        body = "".join(f"        {line}\n" for step in self.steps for line in step.live)
        return f"{parts}class Fuzzed(nn.Module):\n    def forward(self, x, y):\n{body}        {self.returned}\n"

    @property
    def returned(self) -> str:
        return f"return ({', '.join(self.outputs)},)"

    def module(self, hooked: bool = False) -> nn.Module:
        """The module.

        Args:
            hooked: hooks on tensors and backward hooks change gradients; else they look on.
        """
        names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "hook": _half if hooked else _look}
        exec(compile(self.source, f"program-{self.seed}", "exec"), names)
        module = names["Fuzzed"]()
        module.way = []
        _hold(module, self.state)
        for name, part in self.parts.items():
            inner = names[name]()
            _hold(inner, part.writer.state)
            if part.before:
                inner.register_forward_pre_hook(_before(part.before))
            if part.after:
                inner.register_forward_hook(_after(part.after))
            if part.backward:
                inner.register_full_backward_hook(_halves if hooked else _look)
            module.add_module(name, inner)
        return module

    def straight(self, module: nn.Module, way: list[int]) -> nn.Module:
        """The twin of a call, with the parameters and buffers that the module holds now."""
        ways = iter(way)
        body = "".join(f"        {line}\n" for step in self.steps for line in step.straight(ways))
        source = f"class Straight(nn.Module):\n    def forward(self, x, y):\n{body}        {self.returned}\n"
        names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}
        exec(compile(source, f"straight-{self.seed}", "exec"), names)
        twin = names["Straight"]()
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        _hold(twin, {name.replace(".", "_"): value.detach() for name, value in held.items()})
        return twin


def _hold(module: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in state.items():
        if name.rsplit("_", 1)[-1].startswith("w"):
            setattr(module, name, nn.Parameter(value.clone()))
        else:
            module.register_buffer(name, value.clone())


def _look(*seen: Any) -> None:
    return None


def _half(gradient: Tensor) -> Tensor:
    return gradient * 0.5


def _halves(module: nn.Module, inner: Any, outer: Any) -> Any:
    return tuple(None if g is None else g * 0.5 for g in inner)


def _evaluated(expression: str) -> Callable[[Tensor], Tensor]:
    return eval("lambda a: " + expression.replace("{a}", "a"), {"torch": torch})


def _before(expression: str) -> Any:
    change = _evaluated(expression)
    return lambda module, args: (change(args[0]), *args[1:])


def _after(expression: str) -> Any:
    change = _evaluated(expression)
    return lambda module, args, out: change(out)


class _Composer:
    """Composes a program statement by statement, running all of it to see whether the last makes sense."""

    def __init__(self, seed: int) -> None:
        self.writer = Writer(seed, WIDE)
        self.random = self.writer.random
        self.program = Program(seed, tuple(x.detach() for x in self.writer.inputs), self.writer.state)
        self.values: dict[str, Tensor] = dict(self.writer.values)

    def line(self, template: str, a: str, b: str, target: str) -> str:
        value = self.values[a]
        line = STATE.sub(lambda found: self.writer.new_state(*found.groups(), value), template)
        dimension = str(self.random.randrange(max(1, value.dim())))
        line = line.replace("{a}", a).replace("{b}", b).replace("{d}", dimension)
        return line.replace("{v}", target) if "{v}" in line else f"{target} = {line}"

    def plain(self, a: str, b: str, target: str) -> Step:
        kinds = (*WIDE, OPEN_WRITES, OPEN_WRITES, OPEN_WRITES, VIEWS, VIEWS)
        line = self.line(self.random.choice(self.random.choice(kinds)), a, b, target)
        return Step([line], lambda ways: [line])

    def branch(self, a: str, b: str, target: str) -> Step:
        """One of two lines, by a value."""
        first, other = (self.line(self.random.choice(UNARY), a, b, target) for _ in range(2))
        if a not in "xy" and self.random.random() < 0.3:
            other = f"{a}.mul_(0.5); {target} = {a} * 1"
        live = [f"if float({b}.detach().sum()) > 0:", f"    self.way.append(1); {first}"]
        live += ["else:", f"    self.way.append(0); {other}"]
        return Step(live, lambda ways: [first if next(ways) else other])

    def loop(self, a: str, b: str, target: str) -> Step:
        """A line on its own result, as often as a value says."""
        start = f"{target} = {a} * 1" if a in "xy" or self.random.random() < 0.5 else f"{target} = {a}"
        again = self.line(self.random.choice((*UNARY, "{v}.mul_(0.5).add_({b}.mean())")), a, b, target)
        again = re.sub(rf"\b{a}\b", target, again)
        live = [start, f"n = int({b}.detach().abs().sum() * 7) % 4", "self.way.append(n)", "for _ in range(n):"]
        return Step([*live, f"    {again}"], lambda ways: [start, *[again] * next(ways)])

    def call(self, a: str, b: str, target: str) -> Step:
        """A part, a new one or one that was called before."""
        names = list(self.program.parts)
        if not names or self.random.random() < 0.5:
            names.append(f"P{len(names)}")
            self.program.parts[names[-1]] = self.part(a, b)
        name = self.random.choice(names[-2:])
        part = self.program.parts[name]

        def straight(ways: Iterator[int]) -> list[str]:
            lines = [f"{target}_x = {(part.before or '{a}').replace('{a}', a)}", f"{target}_y = {b}"]
            for line in (*part.writer.lines, f"{target} = {(part.after or '{a}').replace('{a}', part.result)}"):
                line = re.sub(r"(?<![\w.])(x|y|v\d+)\b", rf"{target}_\1", line)
                lines.append(line.replace("self.", f"self.{name}_"))
            lines[-1] = f"{target} = {lines[-1].partition(' = ')[2]}"
            return lines

        return Step([f"{target} = self.{name}({a}, {b})"], straight)

    def part(self, a: str, b: str) -> Part:
        writer = Writer(self.random.randrange(2**30), (*WIDE, OPEN_WRITES))
        writer.inputs = tuple(self.values[name].detach().clone().requires_grad_() for name in (a, b))
        writer.values = dict(zip("xy", (x * 1 for x in writer.inputs)))
        length = self.random.randint(1, 3)
        for _ in range(20):
            if len(writer.lines) < length:
                writer.write()
        before, after = (self.random.choice(HOOKS) for _ in range(2))
        return Part(writer, list(writer.values)[-1], before, after, self.random.random() < 0.3)

    def kept(self, a: str, b: str, target: str) -> Step:
        """A value kept on the module, and read from there."""
        return Step([f"self.kept = {a}", f"{target} = self.kept * 1.5"], lambda ways: [f"{target} = {a} * 1.5"])

    def watched(self, a: str, b: str, target: str) -> Step:
        """A hook on a tensor."""
        live = [f"{target} = {a} * 1", f"if {target}.requires_grad: {target}.register_hook(hook)"]
        return Step(live, lambda ways: live[:1])

    def compose(self) -> bool:
        """Try one statement; whether it was kept."""
        program, target = self.program, f"v{len(self.program.steps)}"
        names = list(self.values)
        a, b = (self.random.choice(names[-3:] if self.random.random() < 0.7 else names) for _ in range(2))
        state, parts, outputs = dict(self.writer.state), dict(program.parts), program.outputs
        kinds = [self.plain] * 6 + [self.branch, self.branch, self.loop, self.call, self.call, self.call]
        try:
            program.steps.append(self.random.choice((*kinds, self.kept, self.watched))(a, b, target))
            program.outputs = [f"v{i}" for i in range(len(program.steps))]
            found = self.run()
        except (ValueError, RuntimeError, IndexError, TypeError, UserWarning):
            del program.steps[int(target[1:]) :]
            self.writer.state.clear()
            self.writer.state.update(state)
            program.parts, program.outputs = parts, outputs
            return False
        self.values.update(found)
        return True

    def run(self) -> dict[str, Tensor]:
        """All values.

        Raises:
            ValueError: some are of another type, large, or not finite.
        """
        inputs = tuple(x.clone().requires_grad_() for x in self.program.inputs)
        outputs = self.program.module()(*inputs)
        torch.autograd.backward([o.sum() for o in outputs if o.requires_grad])
        for found in outputs:
            good = found.dtype == torch.float64 and 0 < found.numel() <= 256 and found.dim() <= 4
            if not good or not bool(torch.isfinite(found).all()) or float(found.detach().abs().max()) > 1e3:
                raise ValueError
        return {f"v{i}": out.detach() for i, out in enumerate(outputs)}


def random_program(seed: int, length: int = 10) -> Program:
    """A program of about `length` statements, and with a parameter: it is drawn again until it has one."""
    for again in itertools.count():
        program = _compose(_Composer(seed + again * BETWEEN_DRAWS), length)
        if any(p.requires_grad for p in program.module().parameters()):
            return program
    raise AssertionError("never reached")


def _compose(composer: _Composer, length: int) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(12 * length):
            if len(composer.program.steps) < length:
                composer.compose()
    program = composer.program
    live = [" ".join(step.live) for step in program.steps]
    read = {name for i, text in enumerate(live) for name in re.findall(r"v\d+", text) if name != f"v{i}"}
    program.outputs = [name for name in program.outputs if name not in read][-4:] or program.outputs[-1:]
    return program
