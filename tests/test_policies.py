"""Update policies, Hebb and Oja against formulas written out; in a plain loop, lfpgraph.Trainer and transformers.Trainer."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import PolicyError
from lfpgraph.training.policies import (
    AdaptiveClip,
    NormalizeByMax,
    Policies,
    Policy,
    SmallestWeights,
    TopK,
    WeightScaled,
)

from .support.trainer_run import make_model, make_trainer, same, weights


def small() -> nn.Module:
    """Two layers with gradients in them, all numbers drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 3, 2)).double()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def after(policy: Policy, model: nn.Module | None = None) -> dict[str, Tensor]:
    model = model or small()
    policy(model.named_parameters())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def before() -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (p.detach(), p.grad) for name, p in small().named_parameters() if p.grad is not None}


def test_weight_scaled() -> None:
    found = after(WeightScaled(floor=0.2, pattern="*weight"))
    for name, (w, g) in before().items():
        expected = g * torch.maximum(w.abs(), torch.tensor(0.2)) if name.endswith("weight") else g
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_normalize_by_max(by: str) -> None:
    found = after(NormalizeByMax(by=by))
    given = before()
    for name, (_, g) in given.items():
        mates = [name] if by == "tensor" else [n for n in given if n[0] == name[0]]
        torch.testing.assert_close(found[name], g / max(float(given[n][1].abs().max()) for n in mates))
    nothing = small()
    nothing.zero_grad(set_to_none=False)
    assert not any(g.any() or g.isnan().any() for g in after(NormalizeByMax(), nothing).values())


def test_adaptive_clip() -> None:
    """Brock et al. 2021, eq. 3, one unit at a time."""
    found = after(AdaptiveClip(1.5, eps=0.5))
    clipped = 0
    for name, (w, g) in before().items():
        for i in range(len(w)):
            most = 1.5 * max(float(w[i].norm()), 0.5)
            expected = g[i] * most / g[i].norm() if g[i].norm() > most else g[i]
            clipped += bool(g[i].norm() > most)
            torch.testing.assert_close(found[name][i], expected)
    assert 0 < clipped < 12
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    zero.weight.grad = torch.zeros(2, 2)
    assert not after(AdaptiveClip(), zero)["weight"].any()


def test_top_k() -> None:
    given = before()
    found = after(TopK(0.25))
    for name, (_, g) in given.items():
        keep = max(1, round(0.25 * g.numel()))
        kept = g.abs().flatten().argsort(descending=True)[:keep]
        expected = torch.zeros_like(g).flatten()
        expected[kept] = g.flatten()[kept]
        assert torch.equal(found[name], expected.view_as(g))
    found = after(TopK(0.25, scope="all", exclude="0.bias"))
    sizes = torch.cat([g.abs().flatten() for name, (_, g) in given.items() if name != "0.bias"])
    least = sizes.sort(descending=True).values[round(0.25 * len(sizes)) - 1]
    for name, (_, g) in given.items():
        assert torch.equal(found[name], g if name == "0.bias" else torch.where(g.abs() >= least, g, 0))


def test_smallest_weights_stay_the_same_ones() -> None:
    model, policy = small(), SmallestWeights(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    policy.attach(optimizer, model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.step()
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    for name, p in model.named_parameters():
        small_ones = start[name].abs() <= start[name].abs().flatten().sort().values[round(0.5 * p.numel()) - 1]
        assert torch.equal(p != start[name], small_ones)
    # a resumed run goes on with the same weights, though others are smallest by now
    twin, again = small(), SmallestWeights(0.5)
    twin.load_state_dict(model.state_dict())
    other = torch.optim.SGD(twin.parameters(), lr=10.0)
    again.attach(other, twin)
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert all(torch.equal(again.masks[name], policy.masks[name]) for name in policy.masks)


def test_compose_in_order_and_come_off() -> None:
    model = small()
    both = after(Policies(NormalizeByMax(by="tensor"), TopK(0.5, pattern="0.*")))
    one = after(TopK(0.5, pattern="0.*"), model)
    for name, (_, g) in before().items():
        torch.testing.assert_close(both[name], one[name] / g.abs().max())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = Policies(WeightScaled(pattern="none*"), WeightScaled(pattern="0.weight")).attach(optimizer, model)
    w = dict(model.named_parameters())["0.weight"]
    start, g = w.detach().clone(), w.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    torch.testing.assert_close(w, start - g * start.abs())
    handle.remove()
    w.grad = g.clone()
    now = w.detach().clone()
    optimizer.step()
    torch.testing.assert_close(w, now - g)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0.0), "share=0.0 must be between 0 and 1 and not 0"),
        (lambda: SmallestWeights(1.5), "share=1.5"),
        (lambda: AdaptiveClip(-1.0), "clip=-1.0"),
        (lambda: NormalizeByMax(by="model"), "choose one of layer, tensor"),
        (lambda: TopK(0.1, scope="some"), "choose one of tensor, all"),
        (lambda: TopK(pattern="lora").attach(torch.optim.SGD(small().parameters()), small()), "no trained parameter"),
    ],
)
def test_arguments_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make()


def test_signal_and_weight_scaled_make_lfp() -> None:
    """The composite's own scaling, and the policy on the plain signal, are the same update, weights of zero included."""
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    found = []
    for composite, policy in (
        (lfpgraph.get_composite("lfp-epsilon").with_options(floor=0.05), None),
        (lfpgraph.get_composite("lfp-epsilon").with_options(scale="signal"), WeightScaled(floor=0.05)),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
        lfpgraph.wrap(model, composite)
        F.cross_entropy(model(x), y).backward()
        if policy is not None:
            policy(model.named_parameters())
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)
        assert a.any()


@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("rule", ["hebb", "oja"])
def test_ten_steps_of_hebb_and_oja(rule: str, convolutions: bool) -> None:
    """Two layers by hand: the last is rewarded directly, the first by what LFP-0 hands it; a convolution sees patches."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 2, 2) if convolutions else nn.Linear(9, 5)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(8 if convolutions else 5, 3)).double()
    start = copy.deepcopy(model)
    lfpgraph.wrap(model, lfpgraph.get_composite(rule).with_options(epsilon=0.0))
    w1, b1, w2, b2 = (p.detach().clone() for p in model.parameters())
    for _ in range(10):
        x, reward = torch.randn(7, 9).double(), torch.randn(7, 3).double()
        given = x.reshape(7, 1, 3, 3) if convolutions else x
        model.zero_grad()
        lfpgraph.reward_loss(model(given), reward).backward()
        patches = F.unfold(given, 2).mT if convolutions else x[:, None]  # [n, places, i]
        z1 = patches @ w1.flatten(1).T + b1
        h = z1.relu().mT.flatten(1)
        z2 = h @ w2.T + b2
        s2 = reward / z2
        s1 = (s2 @ w2).reshape(7, *z1.mT.shape[1:]).mT * (z1 > 0)
        for s, z, a, w, b in ((s2[:, None], z2[:, None], h[:, None], w2, b2), (s1, z1, patches, w1, b1)):
            modulator, flat = s * z, w.flatten(1).clone()
            dw = torch.einsum("npo,npo,npi->oi", modulator, z, a)
            db = torch.einsum("npo,npo->o", modulator, z)
            if rule == "oja":
                dw -= torch.einsum("npo,npo,oi->oi", modulator.abs(), z**2, flat)
                db -= torch.einsum("npo,npo,o->o", modulator.abs(), z**2, b)
            w += 1e-3 * dw.reshape(w.shape)
            b += 1e-3 * db
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 1e-3 * p.grad
    for p, q, before in zip(model.parameters(), (w1, b1, w2, b2), start.parameters()):
        assert (p - before).norm() > 1e-4
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


class Matrix(nn.Module):
    """A layer kept as [i, o], as GPT-2's are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3).double()), nn.Parameter(torch.randn(3).double())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("rule", ["hebb", "oja"])
@pytest.mark.parametrize("kind", ["conv", "addmm", "sequence"])
def test_hebb_and_oja_of_other_layers(rule: str, kind: str) -> None:
    """A convolution is a linear layer on its patches, summed over places; a matrix [i, o] is the other's transpose."""
    torch.manual_seed(0)
    layer: nn.Module
    if kind == "conv":
        layer, x = nn.Conv2d(2, 3, 2, stride=2).double(), torch.randn(5, 2, 4, 4).double()
        rows = F.unfold(x, 2, stride=2).transpose(1, 2).reshape(-1, 8)
        shape: Any = lambda t: t.permute(0, 2, 3, 1).reshape(-1, 3)  # noqa: E731
    elif kind == "addmm":
        layer, x = Matrix(), torch.randn(5, 4).double()
        rows, shape = x, lambda t: t
    else:
        layer, x = nn.Linear(4, 3).double(), torch.randn(5, 6, 4).double()
        rows, shape = x.reshape(-1, 4), lambda t: t.reshape(-1, 3)
    z = layer(x).detach()
    reward = torch.randn_like(z)
    found = lfpgraph.feedback(layer, x, reward, lfpgraph.get_composite(rule).with_options(epsilon=0.0))
    flat = nn.Linear(rows.shape[1], 3).double()
    weight = layer.weight.detach().flatten(1) if kind != "addmm" else layer.weight.detach().T  # type: ignore[operator,union-attr]
    flat.load_state_dict({"weight": weight, "bias": layer.bias.detach()})  # type: ignore[operator,union-attr]
    expected = lfpgraph.feedback(flat, rows, shape(reward), lfpgraph.get_composite(rule).with_options(epsilon=0.0))
    got = found["weight"].flatten(1) if kind != "addmm" else found["weight"].T
    torch.testing.assert_close(got, expected["weight"])
    torch.testing.assert_close(found["bias"], expected["bias"])
    lfpgraph.wrap(layer, lfpgraph.get_composite(rule).with_options(epsilon=0.0))
    out = layer(x)
    out.backward(-reward / out.detach())  # the gradient of a loss, which an optimizer goes down
    assert isinstance(layer.weight.grad, Tensor)
    torch.testing.assert_close(-layer.weight.grad, found["weight"])


def test_in_the_trainer_and_resumed(tmp_path: Path) -> None:
    """The policies act inside `lfpgraph.Trainer` as in a loop, and their state is in its checkpoints."""
    pytest.importorskip("accelerate")
    policies = lambda: [NormalizeByMax(), SmallestWeights(0.3, pattern="*weight")]  # noqa: E731
    plain = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    whole = make_trainer(tmp_path / "whole", policies=policies(), optimizer=plain)
    whole.train()
    start = weights(make_model())["5.weight"]
    assert (whole.model[5].weight != start).float().mean().item() == pytest.approx(0.3, abs=0.01)  # type: ignore[index,union-attr]
    half = make_trainer(tmp_path / "half", policies=policies(), optimizer=plain)
    next(record for record in half.iterate() if record["step"] == 5)
    rest = make_trainer(tmp_path / "half", make_model(seed=8), policies=policies(), optimizer=plain)
    rest.train(resume=True)
    assert same(weights(rest.model), weights(whole.model))
