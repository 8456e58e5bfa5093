"""Weights of zero: what they receive under LFP, the floor and the plain signal, and LoRA, whose B starts at zero."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import CompositeError

from .support.helpers import assert_made, assert_same, lfp

LFP = lfpgraph.get_composite("lfp-epsilon")


class Adapter(nn.Module):
    """A linear layer with a low-rank path beside it, whose second matrix is zero, as LoRA's."""

    def __init__(self, zero: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.head = nn.Linear(6, 3)
        self.a.weight.data.uniform_(0.5, 1.0)
        if zero:
            nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.base.bias)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + self.b(self.a(x)) * 2.0))


def batch() -> Tensor:
    return torch.linspace(-2, 2, 20, dtype=torch.float64).view(5, 4).sin()


def by_hand(model: Adapter, x: Tensor) -> dict[str, Tensor]:
    """LFP-0's signals of the adapter's matrices and of the base's bias, from the weights of `helpers.gradients`."""
    low = x @ model.a.weight.T
    mixed = model.base(x) + low @ model.b.weight.T * 2.0
    out = model.head(F.relu(mixed))
    s = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    s = (s @ model.head.weight) * (mixed > 0)
    found = {"b.weight": 2 * s.T @ low, "a.weight": 2 * (s @ model.b.weight).T @ x, "base.bias": s.sum(0)}
    return {name: value.detach() for name, value in found.items()}


def scaled(signal: dict[str, Tensor], model: Adapter, sizes: dict[str, Tensor | float]) -> dict[str, Tensor]:
    return {name: signal[name] * sizes[name] for name in sizes}


def test_a_zero_matrix_wakes_and_a_zero_bias_does_not(engine: str) -> None:
    """B receives the plain signal, in spite of epsilon on its output of zero; A nothing through a B of zero."""
    model, x = Adapter(), batch()
    signal = by_hand(model, x)
    found = lfp(model, x, engine=engine)
    for name, expected in {"b.weight": signal["b.weight"], "a.weight": 0 * found["a.weight"]}.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)
    assert signal["b.weight"].any() and not found["base.bias"].any()
    # once it has moved it is scaled like any other, by a program or plan made before and by one made after
    lfpgraph.wrap(model, "lfp-epsilon", engine=engine)
    (model(x) * torch.linspace(-1, 1, 15).view(5, 3)).sum().backward()
    with torch.no_grad():
        model.b.weight += 0.1
    assert_made(model, engine)
    model.zero_grad()
    (model(x) * torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)).sum().backward()
    assert_made(model, engine)
    before = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    lfpgraph.unwrap(model)
    assert_same(before, lfp(model, x, engine=engine), 1e-12)
    signal = by_hand(model, x)
    torch.testing.assert_close(before["b.weight"], signal["b.weight"] * 0.1, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_options(zero: bool, engine: str) -> None:
    """Floor and plain signal by parameter name, against LFP-0 by hand; the walk equals the program."""
    model, x = Adapter(zero), batch()
    signal, b = by_hand(model, x), Adapter(zero).b.weight.detach()
    zero_eps = lfpgraph.get_composite("lfp-0")
    for composite, sizes in (
        (zero_eps.with_options(floor=1e-3), {"b.weight": b.abs().clamp_min(1e-3), "base.bias": 1e-3}),
        (zero_eps.override("b", floor=0.2), {"b.weight": b.abs().clamp_min(0.2), "base.bias": 0.0}),
        (
            zero_eps.override("*.bias", scale="signal").override("b.*", wake=False),
            {"b.weight": b.abs(), "base.bias": 1.0},
        ),
        (zero_eps.with_options(scale="signal"), {"b.weight": 1.0, "base.bias": 1.0, "a.weight": 1.0}),
    ):
        found = lfp(model, x, composite=composite, engine=engine)  # type: ignore[arg-type]
        for name, expected in scaled(signal, model, sizes).items():  # type: ignore[arg-type]
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"floor": 1e-2}, {"scale": "signal"}, {"wake": False}], ids=str)
def test_walk_and_engines_agree(options: dict[str, Any], engine: str) -> None:
    model, x = Adapter(), batch()
    composite = LFP.with_options(**options)
    reward = torch.linspace(1, 2, 15, dtype=torch.float64).view(5, 3)
    walked = lfpgraph.feedback(model, x, reward, composite)
    lfpgraph.wrap(model, composite, engine=engine)
    out = model(x)
    lfpgraph.reward_loss(out, reward).backward()
    assert walked["b.weight"].any() == (options != {"wake": False})
    for name, p in model.named_parameters():
        torch.testing.assert_close(-p.grad, walked[name], rtol=1e-6, atol=1e-12)  # type: ignore[operator,arg-type]


def test_gradient_composite_is_not_scaled_where_it_overrides(engine: str) -> None:
    """`override(..., composite="gradient")` gives these parameters the true gradient, not the weighted one."""
    model, x = Adapter(False), batch()
    mixed = lfp(model, x, composite=LFP.override("head", composite="gradient"), engine=engine)  # type: ignore[arg-type]
    plain = lfp(model, x, composite="gradient", engine=engine)
    torch.testing.assert_close(mixed["head.weight"], plain["head.weight"])
    assert not torch.allclose(mixed["b.weight"], plain["b.weight"])


def test_what_receives_nothing_is_logged(caplog: pytest.LogCaptureFixture, engine: str) -> None:
    model, x = Adapter(), batch()
    with caplog.at_level(logging.INFO, logger="lfpgraph"):
        lfp(model, x, engine=engine)
    (line,) = [r for r in caplog.records if "wholly zero" in r.message]
    assert (
        line.levelno == logging.INFO
        and "1 of 6 trainable parameters" in line.message
        and ": base.bias." in line.message
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lfpgraph"):
        lfp(model, x, composite=LFP.with_options(wake=False), engine=engine)  # type: ignore[arg-type]
    (line,) = [r for r in caplog.records if "wholly zero" in r.message]
    assert line.levelno == logging.WARNING and "2 of 6" in line.message and 'scale="signal"' in line.message


@pytest.mark.parametrize("options", [{"scale": "none"}, {"floor": -1.0}, {"floor": float("nan")}, {"flor": 1.0}])
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(CompositeError):
        LFP.with_options(**options)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("order", ["wrap(peft_model)", "peft(wrap(base))"])
def test_lora_trains_unmodified(order: str) -> None:
    """A and B of every adapter move within two steps, all else stays; outputs stay those of PEFT."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=12, num_labels=3,
        )
    )  # fmt: skip
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)
    if order == "wrap(peft_model)":
        model = lfpgraph.wrap(peft.get_peft_model(base, config))
    else:
        model = peft.get_peft_model(lfpgraph.wrap(base), config)
    tokens, labels = torch.randint(30, (6, 8)), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    a, b = ({name for name, _ in model.named_parameters() if f"lora_{which}" in name} for which in "AB")
    assert len(a) == len(b) == 2 and b <= reached[0] and not a & reached[0] and a | b <= reached[1]
    assert all("lora_" in name or "classifier" in name for name in reached[1])


class Rows(torch.autograd.Function):
    """A matrix whose rows are scaled, with a backward of its own, as the weights of PEFT's LoHa are made."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(v, w)
        return v.unsqueeze(1) * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        v, w = ctx.saved_tensors
        return (g * w).sum(1), g * v.unsqueeze(1)


class Scaled(nn.Module):
    """A path scaled by a zero: VeRA's vector, ReZero's number, a norm's weight; or by one plus a zero, as Gemma's norms."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.base, self.low = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
        self.norm = nn.BatchNorm1d(6) if kind == "batch norm" else nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        self.zero = nn.Parameter(torch.zeros(() if kind == "number" else 6))
        nn.init.zeros_(self.norm.weight)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        path = {
            "vector": lambda: self.zero * low, "number": lambda: low * self.zero, "norm": lambda: self.norm(low),
            "batch norm": lambda: self.norm(low),
            "one plus": lambda: low * (1 + self.zero), "added": lambda: low + self.zero,
            "custom": lambda: F.linear(x, Rows.apply(self.zero, self.low.weight)),
        }[self.kind]()  # fmt: skip
        return self.head(F.relu(self.base(x) + path))


@pytest.mark.parametrize("kind", ["vector", "number", "norm", "batch norm", "one plus", "custom", "added"])
def test_a_zero_factor_wakes_and_what_is_added_does_not(kind: str, engine: str) -> None:
    """It receives the signal while it is zero, however many dimensions it has; what is behind it follows when it has moved."""
    if engine == "static" and kind == "custom":
        pytest.skip("the static engine refuses functions with a backward of their own")
    model, x = Scaled(kind), batch()
    name = "norm.weight" if kind.endswith("norm") else "zero"
    found = lfp(model, x, engine=engine)
    plain = lfp(model, x, composite=lfpgraph.get_composite("lfp-0").with_options(scale="signal"), engine=engine)  # type: ignore[arg-type]
    if kind == "added":
        assert not found[name].any()
        return
    torch.testing.assert_close(found[name], plain[name], rtol=1e-3, atol=1e-6)
    assert found[name].any() and (kind == "one plus" or not found["low.weight"].any())
    with torch.no_grad():
        model.get_parameter(name).add_(0.1)
    again = lfp(model, x, engine=engine)
    plain = lfp(model, x, composite=lfpgraph.get_composite("lfp-0").with_options(scale="signal"), engine=engine)  # type: ignore[arg-type]
    torch.testing.assert_close(again[name], plain[name] * 0.1, rtol=1e-3, atol=1e-6)
    assert again["low.weight"].any()
