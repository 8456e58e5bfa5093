"""Random modules, written as source code so that a failure can be read and run again."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BINARY", "IN_PLACE", "LAYERS", "REDUCTIONS", "SHAPES", "UNARY", "random_module"]

# {a}, {b}: values so far; {d}: a dimension of a; {v}: the new value, where a line does not only compute it.
# {w:...}, {s:...}: a parameter, a buffer of that shape, an expression in a.
UNARY = (
    "torch.relu({a})",
    "F.gelu({a})",
    "F.gelu({a}, approximate='tanh')",
    "0.5 * {a} * (1 + torch.tanh({a}))",
    "F.silu({a})",
    "F.mish({a})",
    "F.softplus({a})",
    "F.leaky_relu({a}, 0.1)",
    "torch.tanh({a})",
    "{a}.sigmoid()",
    "torch.sin({a})",
    "{a}.square()",
    "({a}.abs() + 0.01).sqrt()",
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
    "{a}.pow(3) * 0.1",
    "({a}.abs() + 0.1).log()",
    "({a}.abs() + 0.1).pow(0.5)",
    "torch.erf({a})",
    "torch.atan({a})",
    "torch.log1p({a}.abs())",
    "F.softsign({a})",
    "F.softshrink({a}, 0.3)",
    "F.threshold({a}, 0.2, -0.1)",
    "torch.round({a} * 4) / 4 + 0.1 * {a}",
    "torch.sign({a}) * {a}",
    "({a} > 0).double() * {a}",
    "F.glu({a}, {d})",
    "1 / (1 + torch.exp(-{a}))",
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
    "{a} + {b}.mean()",
    "{a} * {b}.mean(-1, keepdim=True)",
    "{a}[..., None] - {b}[..., None, :]",
    "{a}.reshape(-1, 1) * {b}.reshape(1, -1)",
    "torch.sub({a}, {b}, alpha=2)",
    "torch.atan2({a}, {b}.abs() + 1)",
    "torch.logaddexp({a}, {b})",
    "torch.cdist({a}, {b} + 3)",
    "torch.where({b} > 0, {a}, 0.5)",
    "F.smooth_l1_loss({a}, {a} * {b}.mean(), reduction='none')",
    "F.cosine_similarity({a}, {b}, dim={d})",
    "sum(torch.broadcast_tensors({a}, {b}))",
    "torch.tensordot({a}, {b}, 1)",
    "torch.baddbmm({a}, {a}, {b})",
    "{a}.masked_fill({b} > 0, -5.0).softmax(-1)",
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
    "{a}.masked_select({a} > -0.5).square().mean()",
    "{a}.scatter(-1, torch.zeros_like({a}[..., :1], dtype=torch.long), {a}[..., -1:])",
    "torch.zeros_like({a}).index_add(0, torch.arange({a}.shape[0]) * 0, {a})",
    "{a}[None]",
    "{a}[torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0])]",
    "{a}[:][{a} > 0].sum()",
    "{a}.tensor_split(2, {d})[1]",
    "{a}.take_along_dim({a}.argsort({d}), {d})",
    "{a}.diag_embed()",
    "{a}.rot90(1, (0, 1))",
    "{a}.reshape(-1, 2).T.contiguous()",
    "{a}.slice_scatter({a}[1:] * 2, 0, 0, -1)",
    "{a}.select_scatter({a}.select({d}, 0) * 2, {d}, 1)",
    "F.pad({a}, (1, 1), mode='circular')",
    "F.interpolate({a}, scale_factor=2)",
    "torch.cartesian_prod({a}.flatten()[:2], {a}.flatten()[1:3])",
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
    "{a}.std({d}, correction=0, keepdim=True)",
    "sum(torch.var_mean({a}, {d}, correction=0))",
    "{a}.aminmax(dim={d}).max",
    "{a}.median({d}).values",
    "{a}.kthvalue(1, {d}).values",
    "{a}.logcumsumexp({d})",
    "{a}.cumprod({d})",
    "{a}.cummax({d}).values",
    "{a}.sum((0, -1))",
    "{a}.max()",
    "{a} / ({a} > 0).sum().clamp(min=1)",
    "{a} * F.one_hot({a}.argmax(-1), {a}.shape[-1])",
    "{a}.trace()",
    "{a}.scatter_reduce({d}, torch.zeros_like({a}, dtype=torch.long), {a}, 'amax')",
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
    "w = {w:3, a.shape[-1]}; {v} = F.linear(F.linear({a}, w), w.t())",
    "F.group_norm({a}, 1, {w:a.shape[1]}, {w:a.shape[1]})",
    "F.batch_norm({a}, None, None, {w:a.shape[1]}, {w:a.shape[1]}, training=True)",
    "F.conv_transpose1d({a}, {w:a.shape[1], 2, 2}, {w:2})",
    "F.conv2d({a}[:, None], {w:2, 1, 2, 2}, {w:2}, padding=1)",
    "F.bilinear({a}, {a}, {w:2, a.shape[-1], a.shape[-1]})",
    "torch.gru_cell({a}, {a}[:, :1], {w:3, a.shape[-1]}, {w:3, 1}, {w:3}, {w:3})",
    "w = {w:3, a.shape[-1]}; {v} = F.linear({a}, w * torch.rsqrt(w.square().sum(1, keepdim=True) + 1e-2))",
    "F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), {w:3, 4})",
    "F.adaptive_avg_pool1d({a}, 2)",
    "{a} + {w:1}.exp()",
    "s = {s:a.shape[-1]}; s.mul_(0.5).add_({a}.detach().flatten(0, -2).mean(0)); {v} = {a} - s",
)
IN_PLACE = (
    "t = {a}.clone(); t.mul_(2); {v} = t + 1",
    "t = {a}.clone(); u, w = t[0], t[-1]; u.add_(w); {v} = t.relu_()",
    "t = {a}.clone(); t.add_({a}); {v} = t",
    "t = {a}.clone(); t[..., 0] = {a}[..., -1] * 2; {v} = t",
    "t = {a}.clone(); t[..., :1].zero_(); {v} = t",
    "t = {a} * 1; t[0].mul_(3); {v} = t",
    "t = torch.zeros_like({a}); t[..., :1] += {a}[..., :1]; {v} = t",
    "t = {a}.clone(); t.transpose(0, -1).add_(1); {v} = t.tanh()",
    "t = {a} + 0; u = t.view(-1); u.mul_(0.5); {v} = t * u.sum()",
    "t = {a}[:].clone(); t[t > 0] = 0.5; {v} = t",
    "t = {a}.clone(); u = t[..., 0]; t.mul_(2); {v} = u + t.sum()",
    "t = {a}.clone(); t.copy_({b}); {v} = t * {a}",
    "t = {a}.clone(); t.index_put_((torch.tensor([0, 0]),), {b}[:1], accumulate=True); {v} = t",
    "t = torch.zeros_like({a}); t.scatter_add_({d}, {a}.argsort({d}), {a}); {v} = t",
    "t = {a}.clone(); t.masked_fill_({a} < 0, 0.1).sigmoid_(); {v} = t",
    "t = {a}.clone(); t.unsqueeze_(0); t.add_({b}); {v} = t",
    "t = {a} * 1; F.relu(t, inplace=True); t.addcmul_({a}, {b}); {v} = t",
    "t = list({a}.unbind({d})); t[0] = t[0] * t[-1]; {v} = torch.stack(t, {d})",
    "t = {a}.clone(); t[..., 1:].sub_(t[..., :-1].clone()); {v} = t",
    "t = {a}.clone(); u = t.flatten()[1:]; u.exp_(); {v} = u.sum() * t",
    "t = {a}.clone(); t.lerp_({b}, 0.3); t[0].add_(t.detach()[-1]); {v} = t",
)
KINDS = (UNARY, UNARY, BINARY, BINARY, SHAPES, SHAPES, REDUCTIONS, LAYERS, LAYERS, IN_PLACE)
STATE = re.compile(r"{([ws]):(.*?)}")


class _Writer:
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
    seed: int, length: int = 12, kinds: tuple[tuple[str, ...], ...] = KINDS
) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """A module of about `length` operations with one to three outputs, its inputs, and its source.

    Args:
        kinds: lists of lines; a list is drawn first, then a line of it.
    """
    writer = _Writer(seed, kinds)
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
