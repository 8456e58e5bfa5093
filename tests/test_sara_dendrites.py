"""SaRA and dendrites against the papers' equations written out, and what they are good for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.training.policies import Dendrites, SaRA

from .support.small_nets import batch, net
from .support.trainer_run import make_model, make_trainer, same, weights


def sara_by_hand(model: nn.Module, threshold: float, rank: float, steps: int, turn: int, convolutions: bool) -> None:
    """Adam (0.9, 0.999, 1e-8) on masked gradients, written out; masks and Adam's memory made new after `turn` steps."""
    masks = {name: p.detach().abs() < threshold for name, p in model.named_parameters()}
    memory: dict[str, tuple[Tensor, Tensor]] = {}
    count = 0
    for step in range(steps):
        x, y = batch(step, convolutions)
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        for name, p in model.named_parameters():
            if p.dim() > 1 and rank:
                loss = loss + rank * torch.linalg.matrix_norm((p * masks[name]).flatten(1), "nuc")
        loss.backward()
        count += 1
        with torch.no_grad():
            for name, p in model.named_parameters():
                assert p.grad is not None
                g = p.grad * masks[name]
                m, s = memory.get(name, (torch.zeros_like(p), torch.zeros_like(p)))
                memory[name] = m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
                p -= 1e-2 * (m / (1 - 0.9**count)) / ((s / (1 - 0.999**count)).sqrt() + 1e-8) * masks[name]
        if step + 1 == turn:
            masks = {name: masks[name] & (p.detach().abs() < threshold) for name, p in model.named_parameters()}
            memory, count = {}, 0


@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("rank", [0.0, 0.1])
def test_sara_is_the_papers(convolutions: bool, rank: float) -> None:
    model, twin = net(convolutions), net(convolutions)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    threshold = 0.12
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    policy = SaRA(threshold=threshold, progressive=5, rank=rank)
    handle = policy.attach(optimizer, model)
    held = [sum(p.numel() for p in optimizer.param_groups[0]["params"])]
    for step in range(10):
        x, y = batch(step, convolutions)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        held.append(sum(p.numel() for p in optimizer.param_groups[0]["params"]))
    sara_by_hand(twin, threshold, rank, 10, 5, convolutions)
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
        assert torch.equal(p[before[name].abs() >= threshold], before[name][before[name].abs() >= threshold])
    assert held[0] == sum(int((w.abs() < threshold).sum()) for w in before.values()) >= held[-1] > 0
    handle.remove()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sara_keeps_little(tmp_path: Path) -> None:
    """A tenth of the weights: a tenth of the gradients and of what Adam remembers, as tensors that are alive after backward."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    lfpgraph.wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    SaRA(0.1).attach(optimizer, model)
    entries = sum(p.numel() for p in model.parameters())
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 64)), torch.randint(10, (8,))).backward()
        held = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        assert sum(p.grad.numel() for p in held) == pytest.approx(0.1 * entries, abs=2)
        assert all(p.grad is None for p in model.parameters())
        optimizer.step()
    remembered = sum(v.numel() for s in optimizer.state.values() for v in s.values() if v.dim())
    assert remembered == 2 * sum(p.numel() for p in held)
    moved = sum(int((p != q).sum()) for p, q in zip(model.parameters(), start))
    assert 0.09 * entries < moved <= 0.1 * entries + 2


def test_sara_in_the_trainer_and_resumed(tmp_path: Path) -> None:
    """Clipping sees the entries that are trained, and a resumed run ends where an uninterrupted one does."""
    pytest.importorskip("accelerate")
    policies = lambda: [SaRA(0.3, progressive=7)]  # noqa: E731
    whole = make_trainer(tmp_path / "whole", policies=policies(), clip=0.1)
    start = weights(make_model())
    whole.train()
    moved = {name: int((w != start[name]).sum()) for name, w in weights(whole.model).items() if w.is_floating_point()}
    assert 0 < sum(moved.values()) < 0.4 * sum(w.numel() for w in start.values())
    half = make_trainer(tmp_path / "half", policies=policies(), clip=0.1)
    next(record for record in half.iterate() if record["step"] == 5)
    rest = make_trainer(tmp_path / "half", policies=policies(), clip=0.1)
    rest.train(resume=True)
    assert same(weights(rest.model), weights(whole.model))


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What each neuron sees, one row for each sample and place."""
    if isinstance(layer, nn.Linear):
        return x
    return F.unfold(x, 2, padding=1, stride=2).movedim(1, -1).reshape(-1, layer.weight[0].numel())  # type: ignore[index,union-attr]


@pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])
def test_dendrites_are_the_papers(convolutions: bool) -> None:
    """Ten steps up the correlation with the errors by formula, in two rounds; then what the neurons make of them."""
    model = net(convolutions)
    grown = Dendrites(model)
    names = list(grown.layers)
    for round_ in range(2):
        grown.grow()
        candidates = list(grown.candidates())
        optimizer = torch.optim.SGD(candidates, 0.5)
        twins = [p.detach().clone() for p in candidates]
        for step in range(10):
            x, y = batch(step, convolutions)
            seen: dict[str, tuple[Tensor, Tensor]] = {}

            def watch(layer: nn.Module, args: Any, z: Tensor, seen: Any = seen) -> None:
                z.retain_grad()
                seen[next(n for n, m in model.named_modules() if m is layer)] = (args[0].detach(), z)

            handles = [layer.register_forward_hook(watch) for layer in grown.layers.values()]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            for handle in handles:
                handle.remove()
            for i, name in enumerate(names):
                layer, (given, z) = grown.layers[name], seen[name]
                assert z.grad is not None
                error = z.grad if z.dim() == 2 else z.grad.movedim(1, -1).flatten(0, -2)
                r, w, b = rows(layer, given), twins[2 * i], twins[2 * i + 1]
                d = torch.tanh(r @ w.flatten(1).T + b)
                apart = error - error.mean(0)
                sign = ((d - d.mean(0)) * apart).sum(0).sign()
                local = sign * apart * (1 - d**2)
                w += 0.5 * (local.T @ r).reshape(w.shape)
                b += 0.5 * local.sum(0)
        for p, q in zip(candidates, twins):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
        grown.settle()
        assert not any(p.requires_grad for p in candidates)
        bank = model[0].dendrites
        assert len(bank.taken) == round_ + 1 and not bank.taken[-1].any()
        with torch.no_grad():
            bank.taken[-1].normal_()
    x, _ = batch(50, convolutions)
    first = model[0]
    r = rows(first, x)
    z = r @ first.weight.flatten(1).T + first.bias
    for w, b, v in zip(first.dendrites.weights, first.dendrites.biases, first.dendrites.taken):
        z = z + v * torch.tanh(r @ w.flatten(1).T + b)
    found = first(x)
    torch.testing.assert_close(found if found.dim() == 2 else found.movedim(1, -1).flatten(0, -2), z)
    alone = net(convolutions)[0]
    alone.load_state_dict({name: p for name, p in first.state_dict().items() if "." not in name})
    (through, plain) = (torch.autograd.grad(m(g := x.clone().requires_grad_()).sum(), g) for m in (first, alone))
    torch.testing.assert_close(through, plain)  # no signal passes through a dendrite


@pytest.mark.parametrize("composite", [None, "lfp"])
def test_dendrites_help_a_small_model(composite: str | None) -> None:
    """A model too small for its task, trained to its end, gets better by what its dendrites have learned."""
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()
    model: Any = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))
    if composite is not None:
        lfpgraph.wrap(model, composite)

    def train(net: Any, parameters: Any, steps: int) -> float:
        optimizer = torch.optim.Adam(list(parameters), 5e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    train(model, model.parameters(), 80)
    twin = copy.deepcopy(model)
    longer = train(twin, twin.parameters(), 120)
    grown = Dendrites(model)
    grown.grow()
    train(model, grown.candidates(), 40)
    grown.settle()
    helped = train(model, [p for p in model.parameters() if p.requires_grad], 80)
    assert helped < 0.92 * longer
    names = dict(model.named_parameters())
    assert "0.dendrites.weights.0" in names and names["0.dendrites.taken.0"].abs().max() > 0.01
