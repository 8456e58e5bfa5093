"""Random modules, written as source code so that a failure can be read and run again."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fuzz_lines import BINARY, IN_PLACE, LAYERS, REDUCTIONS, SHAPES, UNARY

__all__ = ["BETWEEN_DRAWS", "STATE", "Writer", "random_module"]

KINDS = (UNARY, UNARY, BINARY, BINARY, SHAPES, SHAPES, REDUCTIONS, LAYERS, LAYERS, IN_PLACE)
BETWEEN_DRAWS = 2**40  # added to the seed when a case is drawn again
STATE = re.compile(r"{([ws]):(.*?)}")


class Writer:
    """Writes a forward pass line by line, running each line to see whether it makes sense."""

    def __init__(self, seed: int, kinds: tuple[tuple[str, ...], ...]) -> None:
        self.kinds = kinds
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        self.lines: list[str] = []
        shape = [self.random.randint(2, 4) for _ in range(self.random.randint(2, 3))]
        self.inputs = (self.draw(*shape).requires_grad_(), self.draw(*shape).requires_grad_())
        self.values = dict(zip("xy", self.inputs))

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def module(self, source: str = "class Fuzzed(nn.Module): pass", file: str = "fuzz") -> nn.Module:
        """The module of a source, with the parameters and buffers so far."""
        names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}
        exec(compile(source, file, "exec"), names)
        module = names["Fuzzed"]()
        for name, value in self.state.items():
            if name.startswith("w"):
                setattr(module, name, nn.Parameter(value.clone()))
            else:
                module.register_buffer(name, value.clone())
        return module

    def new_state(self, kind: str, shape: str, a: Tensor) -> str:
        name = f"{kind}{len(self.state)}"
        self.state[name] = self.draw(*eval(f"({shape},)", {"a": a})) * 0.7
        return f"self.{name}"

    def pick(self) -> str:
        """A value, mostly a late one, so that graphs grow deep."""
        names = list(self.values)
        return self.random.choice(names[-3:] if self.random.random() < 0.7 else names)

    def write(self) -> bool:
        """Try one line; whether it was kept."""
        template = self.random.choice(self.random.choice(self.kinds))
        a, b = self.pick(), self.pick()
        value = self.values[a]
        target = f"v{len(self.lines)}"
        before = dict(self.state)
        try:
            dimension = str(self.random.randrange(max(1, value.dim())))
            line = STATE.sub(lambda found: self.new_state(*found.groups(), value), template)
            line = line.replace("{a}", a).replace("{b}", b).replace("{d}", dimension)
            line = line.replace("{v}", target) if "{v}" in line else f"{target} = {line}"
            names = {"torch": torch, "F": F, "self": self.module(), **self.values}
            exec(line, names)
            found = names[target]
            if found.requires_grad:
                found.sum().backward(retain_graph=True)  # autograd refuses some writes only here
            good = found.dtype == torch.float64 and 0 < found.numel() <= 256 and found.dim() <= 4
            if not good or not bool(torch.isfinite(found).all()) or float(found.detach().abs().max()) > 1e3:
                raise ValueError
        except (ValueError, RuntimeError, IndexError, TypeError, UserWarning):
            self.state = before
            return False
        self.lines.append(line)
        self.values[target] = found
        return True


def random_module(
    seed: int, length: int = 12, kinds: tuple[tuple[str, ...], ...] = KINDS, trainable: bool = False
) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """A module of about `length` operations with one to three outputs, its inputs, and its source.

    Args:
        kinds: lists of lines; a list is drawn first, then a line of it.
        trainable: it is drawn again until it has a parameter.
    """
    for again in itertools.count():
        module, inputs, source = _drawn(seed + again * BETWEEN_DRAWS, length, kinds)
        if not trainable or dict(module.named_parameters()):
            return module, inputs, source
    raise AssertionError("never reached")


def _drawn(seed: int, length: int, kinds: tuple[tuple[str, ...], ...]) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    writer = Writer(seed, kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(60 * length):
            if len(writer.lines) < length:
                writer.write()
    used = [set(re.findall(r"v\d+", line)) - {f"v{i}"} for i, line in enumerate(writer.lines)]
    read = set().union(*used)
    ends = [name for name in writer.values if name.startswith("v") and name not in read]
    outputs = ", ".join(ends[-4:])
    body = "\n".join(f"        {line}" for line in writer.lines)
    source = f"class Fuzzed(nn.Module):\n    def forward(self, x, y):\n{body}\n        return ({outputs},)\n"
    return writer.module(source, f"fuzz-{seed}"), tuple(x.detach() for x in writer.inputs), source
