"""Operations one by one in ONNX: what onnxruntime computes from an exported forward pass equals torch, at another batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lfpgraph.onnx import OrtTrainer, export_forward, export_training_step  # noqa: E402

aten = torch.ops.aten
Function = Callable[[Tensor], Tensor]
SIZE = (4, 6)  # of an input without its batch; entries lie between -2 and 2


def _whole(x: Tensor) -> Tensor:
    return (4 * x).to(torch.int64)


GROUPS: dict[str, list[Function]] = {
    "arithmetic": [
        lambda x: torch.add(x, x * x, alpha=0.5),
        lambda x: torch.sub(x, x * x, alpha=0.5),
        lambda x: 1.5 - x,
        lambda x: torch.rsub(x, x * x, alpha=2),
        lambda x: torch.div(x, 0.3, rounding_mode="floor"),
        lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
        lambda x: torch.div(_whole(x), 3, rounding_mode="trunc"),
        lambda x: _whole(x) // 3,
        lambda x: _whole(x) % 3,
        lambda x: x % 0.7,
        lambda x: torch.fmod(x, 0.7),
        lambda x: x**2 + x**3 + x.abs() ** 0.5,
        lambda x: torch.trunc(x) + torch.fix(2 * x),
        lambda x: torch.addcmul(x, x, x + 1, value=0.5) + torch.addcmul(x, x, x),
        lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5) + torch.addcdiv(x, x, x.abs() + 1),
        lambda x: torch.lerp(x, x * x, 0.3) + torch.lerp(x, x * x, x.abs() / 3),
        lambda x: torch.clamp(x, -1, 0.5) + x.clamp_min(0.2) + x.clamp_max(0.1) + F.hardtanh(x),
        lambda x: torch.maximum(x, -x) + torch.minimum(x, x * x),
    ],
    "functions": [
        lambda x: torch.rsqrt(x.abs() + 1) + torch.square(x) + torch.exp2(x) + torch.expm1(x),
        lambda x: torch.log1p(x.abs()) + torch.log2(x.abs() + 1) + torch.reciprocal(x.abs() + 1),
        lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x),
        lambda x: F.leaky_relu(x) + F.leaky_relu(x, 0.3) + F.elu(x) + F.elu(x, 0.7) + F.selu(x) + F.celu(x, 0.5),
        lambda x: F.softplus(x) + F.softplus(x, 2.0, 1.0),
        lambda x: torch.copysign(x, -x) + torch.copysign(x, -1.0),
        lambda x: aten.threshold_backward(x, x + 0.1, 0.3),
        lambda x: torch.softmax(x, -1) + torch.log_softmax(x, 1),
        lambda x: torch.sin(x) * torch.tanh(x) + torch.erf(x) + torch.sigmoid(x) + torch.round(x) + torch.ceil(x),
    ],
    "fills": [
        lambda x: x + torch.zeros(4, 6) + torch.ones(x.shape[0], 4, 6) + torch.full((6,), 2.0),
        lambda x: x.new_zeros(x.shape) + x.new_ones(4, 6) + x.new_full((4, 6), 3.0),
        lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2.5),
        lambda x: x + torch.arange(6) + torch.arange(1, 7) + torch.arange(0, 12, 2) + torch.arange(4).unsqueeze(1),
        lambda x: x + torch.arange(x.shape[0]).reshape(-1, 1, 1),
        lambda x: torch.tril(x) + torch.triu(x, 1),
        lambda x: torch.ones(4, 6, dtype=torch.bool).tril(1) & (x > 0).triu(),
    ],
    "logic": [
        lambda x: (x > 0) & (x < 1) | (x == 0) ^ (x >= 1.5),
        lambda x: torch.logical_and(x > 0, x <= 1) | torch.logical_or(x > 1, x != 0) | torch.logical_xor(x > 1, x > 0),
        lambda x: ~(x > 0) & torch.logical_not(x > 1),
        lambda x: (_whole(x) & 3) + (_whole(x) | 5) + (_whole(x) ^ 2) + ~_whole(x),
        lambda x: torch.isnan(x / 0) | torch.isinf(x / 0),
        lambda x: torch.where(x > 0, x, -1.0) + torch.where(x > 0, 2.0, x) + torch.where(x > 0, 1.0, 0.0),
        lambda x: x.masked_fill(x > 0, 3.0) + x.masked_fill(x > 0, torch.tensor(2.0)),
        lambda x: (x > 0) == (x > 1),
    ],
    "places": [
        lambda x: torch.gather(x, 2, torch.tensor([[[0, 5, 2]]]).expand(x.shape[0], 4, 3)),
        lambda x: torch.gather(x > 0, 2, torch.tensor([[[0, 5, 2]]]).expand(x.shape[0], 4, 3)),
        lambda x: torch.index_select(x, 2, torch.tensor([3, 0, 0])),
        lambda x: x.scatter_add(2, _whole(x).remainder(6), x * x),
        lambda x: x.scatter(2, torch.tensor([[[0, 5, 2]]]).expand(x.shape[0], 4, 3), x[:, :, :3] * 2),
        lambda x: x.scatter(2, torch.tensor([[[0, 5, 2]]]).expand(x.shape[0], 4, 3), 7.0),
        lambda x: x[:, torch.tensor([0, 3]), torch.tensor([1, 5])],
        lambda x: x[:, torch.tensor([0, 3])],
        lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 3])), torch.ones(2, 6), accumulate=True),
        lambda x: aten._unsafe_index_put(x, [None, torch.tensor([2, 3])], x[:, :2] * 2),
        lambda x: torch.topk(x, 3)[0],
        lambda x: torch.sort(x, dim=1, descending=True)[0],
        lambda x: F.embedding(_whole(x).remainder(5), torch.arange(20.0).reshape(5, 4)),
        lambda x: aten.embedding_dense_backward(x, _whole(x[..., 0]).remainder(5), 5, -1, False),
        lambda x: aten.embedding_dense_backward(x, _whole(x[..., 0]).remainder(5), 5, 2, False),
    ],
    "shapes": [
        lambda x: x.reshape(x.shape[0], 24) + x.flatten(1) + x.view(-1, 24),
        lambda x: x.permute(0, 2, 1) + x.transpose(1, 2) + x.mT,
        lambda x: x[0].t(),
        lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1),
        lambda x: x.unsqueeze(1).squeeze(1) + x[:, None, :, None].squeeze((1, 3)),
        lambda x: torch.cat([x, x * 2], 1),
        lambda x: torch.stack([x, x * 2], 1) + torch.stack([x, x], 1),
        lambda x: x.split(2, 2)[1] + x.split([1, 2, 3], 2)[1] + x.chunk(3, 2)[2],
        lambda x: x.unbind(1)[2],
        lambda x: x.repeat(1, 2, 3),
        lambda x: F.pad(x, (1, 2, 0, 1), value=2.0),
        lambda x: x * x.shape[0] + x.numel(),
    ],
    "slices": [
        lambda x: x[:, 1:3, ::2],
        lambda x: x[:, -1] + x.select(1, 0),
        lambda x: x.flip(1, 2),
        lambda x: torch.roll(x, (1, -2), (1, 2)) + torch.roll(x, 5) + torch.roll(x, 1, 0),
        lambda x: aten.slice_backward(x, [x.shape[0], 9, 6], 1, 2, 6, 1),
        lambda x: aten.select_backward(x, [x.shape[0], 3, 4, 6], 1, -1),
        lambda x: aten.select_backward(x, [x.shape[0], 3, 4, 6], 1, 1),
        lambda x: torch.slice_scatter(x, x[:, :2] * 3, 1, 1, 3),
        lambda x: torch.select_scatter(x, x[:, 0] * 3, 1, 2) + torch.select_scatter(x, x[:, 0] * 3, 1, -1),
    ],
    "sums": [
        lambda x: x @ torch.arange(12.0).reshape(6, 2) + torch.bmm(x, x.mT)[..., :2],
        lambda x: torch.baddbmm(x, x, torch.ones(6, 6).expand(x.shape[0], 6, 6), beta=0.5, alpha=2.0),
        lambda x: torch.addmm(x[0], x[0], torch.ones(6, 6), beta=0.5, alpha=2.0),
        lambda x: F.linear(x, torch.arange(18.0).reshape(3, 6), torch.ones(3)) + F.linear(x, torch.ones(3, 6)),
        lambda x: F.avg_pool1d(x, 2) + F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x.unsqueeze(1), 2) + F.max_pool2d(x.unsqueeze(1), 3, 2, 1),
        lambda x: F.conv1d(x, torch.ones(2, 4, 3), padding=1) + F.conv_transpose1d(x, torch.ones(4, 2, 3), padding=1),
        lambda x: F.layer_norm(x, (6,)) + F.layer_norm(x, (6,), torch.ones(6) * 2, torch.ones(6)),
        lambda x: x.sum(1) + x.mean(1) + x.amax(1) + x.amin(1) + x.prod(1) + x.sum() + x.mean(),
        lambda x: (x > 1).any(1) ^ (x > -1).all(2).any(),
        lambda x: (x > 0).all(1, keepdim=True) & (x > -1).all(),
        lambda x: x.max(1)[0] + x.min(1)[0] + x.max() + x.min() + x.argmax(1) + x.argmin(1) + x.argmax(),
        lambda x: x.cumsum(1) + torch.linalg.vector_norm(x, 2, 1, keepdim=True),
        lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None] * 2, x[:, None], is_causal=True),
        lambda x: F.dropout(x, 0.5, False) + F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    ],
}  # fmt: skip


class Several(nn.Module):
    """What each of some functions gives for x."""

    def __init__(self, functions: list[Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x) for function in self.functions]


def draw(batch: int) -> Tensor:
    return 4 * torch.rand(batch, *SIZE, generator=torch.Generator().manual_seed(batch)) - 2


@pytest.mark.parametrize("group", list(GROUPS))
def test_operations_equal_torch(group: str, tmp_path: Path) -> None:
    model = Several(GROUPS[group])
    path, x = export_forward(model, draw(3), tmp_path / "forward.onnx"), draw(5)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy()})
    for i, (ours, theirs) in enumerate(zip(found, model(x), strict=True)):
        assert ours.dtype == theirs.numpy().dtype, i
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6, err_msg=f"{group} {i}")


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8),
    "batch_eval": lambda: nn.BatchNorm2d(8).eval(),
    "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "layer": lambda: nn.LayerNorm([8, 6, 6]),
}


@pytest.mark.parametrize("norm", list(NORMS))
def test_steps_through_norms_equal_torch(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), NORMS[norm](), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
    _check_steps(nn.Sequential(*layers), torch.float32, tmp_path)


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.bilinear(x, x.tanh())
        return found


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x.tanh() + 0.1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "windows that overlap": lambda: nn.MaxPool2d(3, 2, 1),
    "adaptive, apart": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive, overlapping": lambda: nn.AdaptiveAvgPool2d((4, 6)),
    "bilinear": Squared,
    "a maximum behind a norm": lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True), Largest()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layer", list(LAYERS))
def test_steps_through_layers_equal_torch(layer: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """With a convolution before them, which onnxruntime does not have in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), LAYERS[layer](), nn.Flatten())
    model.append(nn.Linear(model(torch.randn(1, 2, 6, 6)).shape[1], 4))
    _check_steps(model.to(dtype), dtype, tmp_path)


def _check_steps(model: nn.Module, dtype: torch.dtype, folder: Path) -> None:
    """Three steps with batches of several sizes leave what they leave in torch."""
    rules = lfpgraph.get_composite("lfp-epsilon").with_options(epsilon=0.1)
    example = torch.randn(4, 2, 6, 6, dtype=dtype)
    trainer = OrtTrainer(export_training_step(model, example, folder / "step.onnx", composite=rules))
    lfpgraph.wrap(model, rules)
    update = torch.optim.SGD(model.parameters(), 1e-2)
    for batch in (2, 3, 5):
        x, y = torch.randn(batch, 2, 6, 6, dtype=dtype), torch.randint(0, 4, (batch,))
        update.zero_grad()
        F.cross_entropy(model(x), y).backward()
        update.step()
        trainer.step(x.numpy(), y.numpy(), 1e-2)
    expected = model.state_dict()
    for name, value in trainer.state_dict().items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
