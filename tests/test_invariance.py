"""The same function written differently gets the same feedback (float64, 1e-9)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .support.helpers import assert_same, lfp


class Sandwich(nn.Module):
    """A linear layer on both sides of a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


ACTIVATIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "gelu": [F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))],
    "gelu-tanh": [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608028654 * (1.0 + 0.044715 * x * x))),
    ],
    "quick-gelu": [lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.silu(1.702 * x) / 1.702],
    "silu": [F.silu, lambda x: x * torch.sigmoid(x), lambda x: x / (1 + torch.exp(-x))],
    "soft-cap": [lambda x: 3.0 * torch.tanh(x / 3.0), lambda x: torch.tanh(x * (1 / 3.0)) * 3.0],
    "mish": [
        F.mish,
        lambda x: x * torch.tanh(F.softplus(x)),
        lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    ],
    "hardswish": [F.hardswish, lambda x: x * F.relu6(x + 3) / 6, lambda x: x * torch.clamp(x + 3, 0, 6) / 6],
    "step": [
        lambda x: torch.heaviside(x, torch.zeros((), dtype=x.dtype)),
        lambda x: (x > 0).to(x.dtype),
        lambda x: torch.where(x > 0, torch.sign(x), x * 0),
    ],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_forms(name: str, engine: str) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    forms = [lfp(Sandwich(f).double(), x, engine=engine) for f in ACTIVATIONS[name]]
    for other in forms[1:]:
        assert_same(other, forms[0], 1e-9)


class WrittenLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class VarLayerNorm(WrittenLayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        return self.weight * ((x - x.mean(-1, keepdim=True)) * scale) + self.bias


class WrittenRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _with_values(norm: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn_like(p))
    return norm


@pytest.mark.parametrize(
    "forms",
    [
        pytest.param([lambda: nn.LayerNorm(6), lambda: WrittenLayerNorm(6), lambda: VarLayerNorm(6)], id="layer_norm"),
        pytest.param([lambda: nn.RMSNorm(6, eps=1e-6), lambda: WrittenRMSNorm(6)], id="rms_norm"),
    ],
)
def test_norm_forms(forms: list[Callable[[], nn.Module]], engine: str) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    found = [lfp(Sandwich(_with_values(form())).double(), x, engine=engine) for form in forms]
    for other in found[1:]:
        assert_same(other, found[0], 1e-9)


def test_llama_norm_equals_rms_norm(engine: str) -> None:
    """transformers' Llama norm computes in float32 whatever comes in, so the fused twin does too; float32 rounding."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x.float(), (6,), None, 1e-6).to(x.dtype) * self.weight

    x = torch.randn(5, 4, dtype=torch.float64)
    found = lfp(Sandwich(_with_values(LlamaRMSNorm(6))).double(), x, engine=engine)
    assert_same(found, lfp(Sandwich(_with_values(Twin())).double(), x, engine=engine), 1e-5)


def test_llama_norm_in_double(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """With its internal float32 read as float64 it equals nn.RMSNorm to 1e-9."""
    from transformers.models.llama import modeling_llama

    x = torch.randn(5, 4, dtype=torch.float64)
    expected = lfp(Sandwich(_with_values(nn.RMSNorm(6, eps=1e-6))).double(), x, engine=engine)
    model = Sandwich(_with_values(modeling_llama.LlamaRMSNorm(6))).double()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        found = lfp(model, x, engine=engine)
    assert_same(found, expected, 1e-9)


class Attention(nn.Module):
    def __init__(self, fused: bool, masked: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.relative = nn.Parameter(torch.randn(2, 5, 5)) if masked == "learned" else None
        self.fused, self.masked = fused, masked

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.relative
        if self.masked == "causal":
            blocked = torch.ones(length, length, dtype=torch.bool).triu(1)
            mask = torch.zeros(length, length, dtype=x.dtype).masked_fill(blocked, float("-inf"))
        if self.fused:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(width // 2))
            z = (scores if mask is None else scores + mask).softmax(-1) @ v
        return self.out(z.transpose(1, 2).reshape(n, length, width))


@pytest.mark.parametrize("masked", ["none", "causal", "learned"])
def test_attention_forms(masked: str, engine: str) -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert_same(
        lfp(Attention(True, masked).double(), x, engine=engine),
        lfp(Attention(False, masked).double(), x, engine=engine),
        1e-9,
    )


class FusedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class LoopLSTM(nn.Module):
    def __init__(self, fused: FusedLSTM) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 5).double(), copy.deepcopy(fused.head)
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.cell, name).copy_(getattr(fused.rnn, name + "_l0"))

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


def test_lstm_equals_loop_of_cells(engine: str) -> None:
    fused = FusedLSTM().double()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    expected = {name.replace("cell", "rnn"): g for name, g in lfp(LoopLSTM(fused), x, engine=engine).items()}
    found = {name.replace("_l0", ""): g for name, g in lfp(fused, x, engine=engine).items()}
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_written_out(bias: bool, engine: str) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(4, 6, bias=bias), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = x @ self.layer.weight.T
            z = z + self.layer.bias if bias else z
            return self.head(z * 0.5 * (1 + torch.erf(z / math.sqrt(2))))

    class Fused(Written):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.layer(x)))

    x = torch.randn(5, 4, dtype=torch.float64)
    assert_same(lfp(Written().double(), x, engine=engine), lfp(Fused().double(), x, engine=engine), 1e-9)
