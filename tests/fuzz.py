"""Random modules, written as source code so that a failure can be read and run again."""

from __future__ import annotations

import random
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["random_module"]

# {a}, {b}: values so far; {d}: a dimension of a; {w:...}: a parameter of that shape, an expression in a.
UNARY = (
    "torch.relu({a})",
    "F.gelu({a})",
    "F.gelu({a}, approximate='tanh')",
    "0.5 * {a} * (1 + torch.tanh({a}))",
    "F.silu({a})",
    "F.mish({a})",
    "F.elu({a})",
    "F.softplus({a})",
    "F.leaky_relu({a}, 0.1)",
    "F.hardswish({a})",
    "torch.tanh({a})",
    "{a}.sigmoid()",
    "torch.sin({a})",
    "{a}.square()",
    "{a}.abs().sqrt()",
    "{a}.clamp(-1, 1)",
    "torch.where({a} > 0, {a}, 0.5 * {a})",
    "{a}.masked_fill({a} > 1, 0.3)",
    "{a} * 1.5 - 0.25",
    "2 / ({a}.abs() + 1)",
    "-{a}",
    "{a}.exp().clamp(max=3)",
    "{a}.float().double()",
    "{a} * {a}",
    "{a} + {a}",
    "{a}.detach() * {a}",
)
BINARY = (
    "{a} + {b}",
    "{a} - 0.5 * {b}",
    "{a} * {b}",
    "{a} / ({b}.abs() + 1)",
    "torch.maximum({a}, {b})",
    "torch.where({a} > {b}, {a}, {b})",
    "torch.lerp({a}, {b}, 0.3)",
    "torch.addcmul({a}, {a}, {b})",
    "{a} @ {b}",
    "{a} @ {b}.transpose(-1, -2)",
    "torch.cat([{a}, {b}], {d})",
    "torch.stack([{a}, {b}], {d})",
    "torch.einsum('...i,...j->...ij', {a}, {b})",
    "F.scaled_dot_product_attention({a}, {b}, {b})",
)
SHAPES = (
    "{a}.transpose(0, -1)",
    "{a}.reshape(-1)",
    "{a}.flatten(-2)",
    "{a}.unsqueeze({d})",
    "{a}.squeeze()",
    "{a}.flip({d})",
    "{a}.roll(1, {d})",
    "{a}.expand(2, *{a}.shape)",
    "{a}.repeat(2, *[1] * ({a}.dim() - 1))",
    "{a}.repeat_interleave(2, {d})",
    "{a}[..., :-1]",
    "{a}[..., ::2]",
    "{a}[1:]",
    "{a}[..., [0, -1, 0]]",
    "{a}.split(1, {d})[-1]",
    "{a}.chunk(2, {d})[0]",
    "{a}.unbind({d})[0]",
    "{a}.narrow({d}, 0, 1)",
    "F.pad({a}, (1, 1))",
    "{a}.permute(*reversed(range({a}.dim())))",
    "{a}.diagonal(0, 0, 1)",
    "{a}.unfold(-1, 2, 1)",
    "torch.tril({a})",
    "{a}.movedim(0, -1)",
    "{a}.index_select({d}, torch.tensor([0, 0]))",
    "{a}.gather(-1, torch.zeros_like({a}, dtype=torch.long))",
    "{a}.masked_select({a} > -9)",
    "{a}.scatter(-1, torch.zeros_like({a}[..., :1], dtype=torch.long), {a}[..., -1:])",
    "torch.zeros_like({a}).index_add(0, torch.arange({a}.shape[0]) * 0, {a})",
)
REDUCTIONS = (
    "{a}.sum({d}, keepdim=True)",
    "{a}.mean({d})",
    "{a}.mean()",
    "{a}.amax({d})",
    "{a}.max({d}).values",
    "{a}.min({d}, keepdim=True).values",
    "{a}.cumsum({d})",
    "{a}.var({d}, correction=0, keepdim=True)",
    "{a}.logsumexp({d})",
    "{a}.softmax({d})",
    "F.log_softmax({a}, {d})",
    "{a}.topk(1, {d}).values",
    "{a}.sort({d}).values",
    "{a}.prod({d})",
    "{a}.norm(dim={d}, keepdim=True)",
    "F.normalize({a}, dim={d})",
)
LAYERS = (
    "F.linear({a}, {w:3, a.shape[-1]}, {w:3})",
    "{a} @ {w:a.shape[-1], 2}",
    "{a} * {w:a.shape[-1]} + {w:a.shape[-1]}",
    "F.layer_norm({a}, {a}.shape[-1:], {w:a.shape[-1]}, {w:a.shape[-1]})",
    "F.rms_norm({a}, {a}.shape[-1:], {w:a.shape[-1]})",
    "({a} - {a}.mean(-1, keepdim=True)) * torch.rsqrt({a}.var(-1, keepdim=True, correction=0) + 1e-3)",
    "F.conv1d({a}, {w:2, a.shape[1], 2}, {w:2})",
    "F.max_pool1d({a}, 2)",
    "F.avg_pool1d({a}, 2)",
    "F.embedding(torch.tensor([0, 2, 1]), {w:3, 4})",
    "torch.einsum('...i,oi->...o', {a}, {w:3, a.shape[-1]})",
    "{w:2, 3}.tanh() @ {w:3, 2}",
    "F.prelu({a}, {w:1})",
)
IN_PLACE = (
    "t = {a}.clone(); t.mul_(2); {v} = t + 1",
    "t = {a}.clone(); t.relu_(); {v} = t",
    "t = {a}.clone(); t.add_({a}); {v} = t",
    "t = {a}.clone(); t[..., 0] = {a}[..., -1] * 2; {v} = t",
    "t = {a}.clone(); t[..., :1].zero_(); {v} = t",
    "t = {a} * 1; t[0].mul_(3); {v} = t",
    "t = torch.zeros_like({a}); t[..., :1] += {a}[..., :1]; {v} = t",
    "t = {a}.clone(); t.transpose(0, -1).add_(1); {v} = t.tanh()",
    "t = {a} + 0; u = t.view(-1); u.mul_(0.5); {v} = t * u.sum()",
)
KINDS = (UNARY, UNARY, BINARY, BINARY, SHAPES, REDUCTIONS, LAYERS, LAYERS, IN_PLACE)


class _Writer:
    """Writes a forward pass line by line, running each line to see whether it makes sense."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {}
        self.lines: list[str] = []
        self.values: dict[str, Tensor] = {}

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def names(self) -> dict[str, Any]:
        holder = nn.Module()
        for name, value in self.parameters.items():
            setattr(holder, name, nn.Parameter(value))
        return {"torch": torch, "F": F, "self": holder, **self.values}

    def weight(self, shape: str, a: Tensor) -> str:
        name = f"w{len(self.parameters)}"
        self.parameters[name] = self.draw(*eval(f"({shape},)", {"a": a})) * 0.7
        return f"self.{name}"

    def pick(self) -> str:
        """A value, mostly a late one, so that graphs grow deep."""
        names = list(self.values)
        return self.random.choice(names[-3:] if self.random.random() < 0.7 else names)

    def write(self) -> bool:
        """Try one line; whether it was kept."""
        template = self.random.choice(self.random.choice(KINDS))
        a, b = self.pick(), self.pick()
        value = self.values[a]
        target = f"v{len(self.lines)}"
        before = dict(self.parameters)
        try:
            dimension = str(self.random.randrange(value.dim()))
            line = template
            while "{w:" in line:
                head, _, rest = line.partition("{w:")
                shape, _, tail = rest.partition("}")
                line = head + self.weight(shape, value) + tail
            line = line.replace("{a}", a).replace("{b}", b).replace("{d}", dimension)
            line = line.replace("{v}", target) if "{v}" in line else f"{target} = {line}"
            names = self.names()
            with torch.no_grad():
                exec(line, names)
            found = names[target]
            good = found.dtype == torch.float64 and 0 < found.numel() <= 256 and found.dim() <= 4
            if not good or not bool(torch.isfinite(found).all()) or float(found.abs().max()) > 1e3:
                raise ValueError
        except (ValueError, RuntimeError, IndexError, TypeError):
            self.parameters = before
            return False
        self.lines.append(line)
        self.values[target] = found
        return True


def random_module(seed: int, length: int = 12) -> tuple[nn.Module, tuple[Tensor, Tensor], str]:
    """A module of about `length` operations with one to three outputs, its inputs, and its source."""
    writer = _Writer(seed)
    shape = [writer.random.randint(2, 4) for _ in range(writer.random.randint(2, 3))]
    inputs = (writer.draw(*shape), writer.draw(*shape))
    writer.values = {"x": inputs[0], "y": inputs[1]}
    for _ in range(60 * length):
        if len(writer.lines) == length:
            break
        writer.write()
    read = {word for line in writer.lines for word in re.findall(r"v\d+", line.split(" = ", 1)[-1])}
    ends = [name for name in writer.values if name.startswith("v") and name not in read]
    outputs = ", ".join(ends[-4:])
    body = "\n".join(f"        {line}" for line in writer.lines)
    source = f"class Fuzzed(nn.Module):\n    def forward(self, x, y):\n{body}\n        return ({outputs},)\n"
    names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}
    exec(compile(source, f"fuzz-{seed}", "exec"), names)
    module = names["Fuzzed"]()
    for name, value in writer.parameters.items():
        setattr(module, name, nn.Parameter(value))
    return module, inputs, source
