"""In-place writes to views: the same feedback from both engines, and as if nothing had been written in place (float64)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph

from .support.helpers import RECORDED, assert_same, gradients

VIEWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pool": lambda h, w: F.avg_pool1d(h, 3, 1, 1),  # of these, torch hands back a view of what it computed
    "max_pool": lambda h, w: F.max_pool1d(h, 3, 1, 1),
    "norm": lambda h, w: F.instance_norm(h),
    "einsum": lambda h, w: torch.einsum("bti,ij->btj", h, w),
    "kron": lambda h, w: torch.kron(h, torch.ones(1, 1, 1, dtype=h.dtype)),
    "transposed": lambda h, w: F.conv1d(h.transpose(1, 2), w[:, :, None]).transpose(1, 2),
    "shuffled": lambda h, w: F.pixel_shuffle(h.reshape(len(h), 4, 3, 1), 2).reshape(len(h), 3, 4),
    "selected": lambda h, w: F.unfold(h[:, None], 1)[:, 0].view_as(h),
    "expanded": lambda h, w: (h @ w[0])[..., None].expand_as(h).clone(),
}
WRITES: dict[str, list[Callable[[Tensor, Tensor], Tensor]]] = {
    "one": [lambda h, w: h.mul_(w[0]), lambda h, w: h * w[0]],
    "activation": [lambda h, w: h.add_(0.5).relu_(), lambda h, w: (h + 0.5).relu()],
    "layer_and_activation": [
        lambda h, w: h.mul_(w[0]).add_(0.5).relu_(),
        lambda h, w: (h * w[0] + 0.5).relu(),
    ],
    "view_of_it": [lambda h, w: h.view(-1, 4).add_(0.5).tanh_().view_as(h), lambda h, w: (h + 0.5).tanh()],
    "seen_through_another": [
        lambda h, w: (h.view(-1).add_(0.5), h.tanh_())[1],
        lambda h, w: (h + 0.5).tanh(),
    ],
    "a_part": [
        lambda h, w: (h[:, :2].mul_(w[0]), h)[1],
        lambda h, w: torch.cat([h[:, :2] * w[0], h[:, 2:]], 1),
    ],
}


class Net(nn.Module):
    """A function between two layers."""

    def __init__(self, view: Callable[[Tensor, Tensor], Tensor], write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.weight, self.last = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)
        self.view, self.write = view, write

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.write(self.view(self.first(x), self.weight), self.weight))


CASES = [
    (view, write)
    for view in VIEWS
    for write in WRITES
    if write not in ("view_of_it", "seen_through_another")
    or view not in ("transposed", "max_pool")  # torch refuses these
    if write != "a_part"
    or view not in ("pool", "norm", "einsum")  # docs/design.md, "Limits": a part of what no one sees whole
]


@pytest.mark.parametrize(("view", "write"), CASES)
def test_both_engines_as_if_nothing_was_written_in_place(view: str, write: str) -> None:
    """What is written through another view of the same values is one more operation between, so only the engines agree."""
    torch.manual_seed(0)
    in_place, apart = WRITES[write]
    model, x = Net(VIEWS[view], in_place).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    twin = copy.deepcopy(model)
    found = gradients(lfpgraph.wrap(copy.deepcopy(model), engine="live"), x)
    assert_same(gradients(lfpgraph.wrap(model, engine="static"), x), found, 1e-9)
    if write != "seen_through_another":
        twin.write = apart
        assert_same(found, gradients(lfpgraph.wrap(twin, engine="live"), x), 1e-9 if write != "a_part" else 1e-5)


def test_to_look_at_what_a_written_view_is_of_parts_no_function() -> None:
    """What was read there and is not used hid the way back through the function: it handed on the plain gradient."""
    torch.manual_seed(0)

    def half(looks: bool) -> Callable[[Tensor, Tensor], Tensor]:
        def write(h: Tensor, w: Tensor) -> Tensor:
            flat = h.view(-1)
            flat.add_(0.5)
            if looks:
                h.detach().sum()
            return (flat * 2).relu().view_as(h)

        return write

    model, x = Net(lambda h, w: h * 1.5, half(True)).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    twin = copy.deepcopy(model)
    twin.write = half(False)
    found = gradients(lfpgraph.wrap(model, "lfp-epsilon", engine="live"), x)
    assert_same(found, gradients(lfpgraph.wrap(twin, "lfp-epsilon", engine="live"), x), 1e-9)


INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "select": lambda h: h.unsqueeze(0).select(0, 0),
    "view": lambda h: h.view(-1).view(h.shape),
    "transpose": lambda h: h.mT.transpose(-2, -1),
    "permute": lambda h: h.permute(2, 0, 1).permute(1, 2, 0),
    "slice": lambda h: h[:],
    "squeeze": lambda h: h.unsqueeze(-2).squeeze(-2)[None][0],
}


@pytest.mark.parametrize("name", INVERSE)
def test_views_that_change_nothing_part_no_function(name: str) -> None:
    torch.manual_seed(0)

    def written_out(view: Callable[[Tensor], Tensor]) -> nn.Module:
        return Net(lambda h, w: view((h + 0.5).relu()) * 2 + 0.3, lambda h, w: view(h * 0.5).sigmoid() * view(h))

    viewed, plain, x = written_out(INVERSE[name]).double(), written_out(lambda h: h).double(), torch.randn(2, 3, 5)
    plain.load_state_dict(viewed.state_dict())
    expected = gradients(lfpgraph.wrap(plain, "lfp-epsilon", engine="live"), x.double())
    static = lfpgraph.wrap(copy.deepcopy(viewed), "lfp-epsilon", engine="static")
    assert_same(gradients(static, x.double()), expected, 1e-9)
    live = lfpgraph.wrap(viewed, "lfp-epsilon", engine="live")
    for _ in range(3):
        assert_same(gradients(live, x.double()), expected, 1e-9)
    assert lfpgraph.explain_wrap(live).plans == 1


def filled(mask: Tensor) -> Tensor:
    mask = mask.to(torch.float64)
    mask[0] += 1
    mask[:, 1] = 0.5
    return mask


ASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "written to": lambda v, h: filled(torch.zeros_like(v)),
    "read": lambda v, h: torch.full_like(v, 0.5),
    "new": lambda v, h: filled(v.new_zeros(v.shape)),
    "of a comparison": lambda v, h: filled(torch.zeros_like(v > 0.1)),
    "twice": lambda v, h: filled(torch.zeros_like(v * 2)) + torch.ones_like(v + 1),
    "of no part of it": lambda v, h: filled(torch.zeros_like(h)),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_to_be_asked_for_its_size_parts_no_function(name: str, composite: str) -> None:
    """An activation written out is one, whether or not what multiplies it is made as large as a value within it."""
    torch.manual_seed(0)

    def of(mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda h, w: (v := torch.sigmoid(h)) * mask(v, h) + 0.1

    fixed = ASKED[name](torch.zeros(2, 3, 4).double(), torch.zeros(2, 3, 4).double())
    asking, plain = (Net(lambda h, w: h * 1.5, of(mask)).double() for mask in (ASKED[name], lambda v, h: fixed))
    plain.load_state_dict(asking.state_dict())
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = gradients(lfpgraph.wrap(plain, composite, engine="live"), x)
    for engine in ("live", "static"):
        assert_same(gradients(lfpgraph.wrap(copy.deepcopy(asking), composite, engine=engine), x), expected, 1e-9)


class Passes(nn.Module):
    """Hands on the greatest of each row of y, and of x what stands there: autograd reads no greatest value again."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (y >= y.amax(-1, keepdim=True)).to(x.dtype) * x


class WrittenBehind(nn.Module):
    """Writes to what a mask was made of."""

    def __init__(self, in_place: bool, hooked: bool) -> None:
        super().__init__()
        self.first, self.passes, self.in_place = nn.Linear(5, 4), Passes(), in_place
        if hooked:
            self.passes.register_full_backward_hook(lambda *seen: None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        passed = self.passes(h.exp(), h) if self.in_place else self.passes(h.exp(), h.clone())
        h = h.add_(0.5) if self.in_place else h + 0.5
        return passed.sum(-1) + h.sum(-1)


@pytest.mark.parametrize("hooked", [False, True])
def test_what_only_reward_comes_to_may_be_written_to(hooked: bool) -> None:
    """Plain autograd never runs the node of the maximum that a mask is made of."""
    torch.manual_seed(0)
    in_place, apart = WrittenBehind(True, hooked).double(), WrittenBehind(False, hooked).double()
    apart.load_state_dict(in_place.state_dict())
    assert all(g is not None for g in gradients(copy.deepcopy(in_place), torch.randn(3, 5).double()).values())
    live, twin = (lfpgraph.wrap(net, engine="live") for net in (in_place, apart))
    for _ in range(5):
        x = torch.randn(3, 5, dtype=torch.float64)
        assert_same(gradients(live, x), gradients(twin, x), 1e-12)


class WrittenFarBehind(nn.Module):
    """Writes to what the values of a mask were made of; autograd's way back leads past it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.passes, self.in_place = nn.Linear(5, 4), Passes(), in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        behind = h.exp()
        passed = self.passes(h, behind.tanh())
        if self.in_place:
            behind.add_(0.5)
        return passed.sum(-1)


def test_what_reward_comes_to_by_a_long_way_may_be_written_to() -> None:
    torch.manual_seed(0)
    plain, x = WrittenFarBehind(False).double(), torch.randn(3, 5, dtype=torch.float64)
    written = WrittenFarBehind(True).double()
    written.load_state_dict(plain.state_dict())
    found = gradients(lfpgraph.wrap(written, engine="live"), x)
    assert all(bool(g.any()) for g in found.values())
    assert_same(found, gradients(lfpgraph.wrap(plain, engine="live"), x), 1e-12)


class Capacity(nn.Module):
    """A router that takes out of a mask, part by part, what does not fit, as a mixture of experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, in_place: bool = True) -> Tensor:
        gates, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        mask = F.one_hot(chosen, 3).to(x.dtype) * (gates > 0.3).to(x.dtype).unsqueeze(-1)
        fits = (mask.cumsum(0) < 3).to(x.dtype)
        if in_place:
            for n in range(2):
                mask[:, n] *= fits[:, n]
        else:
            mask = mask * fits
        return self.last((mask * gates.unsqueeze(-1)).sum(1))


@pytest.mark.parametrize("composite", [RECORDED, "lfp", "lfp-epsilon"], ids=["recorded", "lfp", "lfp-epsilon"])
def test_a_part_is_written_to_by_itself(composite: Any) -> None:
    """`mask[n] *= fits` writes the product into the part that it is."""
    torch.manual_seed(0)
    live, x = Capacity().double(), torch.randn(5, 4, dtype=torch.float64)
    apart = lfpgraph.wrap(copy.deepcopy(live), composite, engine="live")
    lfpgraph.wrap(live, composite, engine="live")
    assert_same(gradients(live, x), gradients(apart, x, False), 1e-9)
