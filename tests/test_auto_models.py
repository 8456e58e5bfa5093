"""Models under the default engine: where the static one must not stay, and calls that it shares a step with live ones."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import WrapError


def _feedback(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def test_calls_of_both_engines_before_one_backward() -> None:
    """The first call is live and the others static; batch norm's statistics are written by all of them."""
    model = _encoder()
    other = lfpgraph.wrap(copy.deepcopy(model), engine="live")
    lfpgraph.wrap(model)
    anchor, near, far = (torch.randn(5, 4).double() for _ in range(3))
    for _ in range(2):
        found, expected = (_feedback(m, F.triplet_margin_loss(m(anchor), m(near), m(far))) for m in (model, other))
        torch.testing.assert_close(found, expected)
    assert lfpgraph.explain_wrap(model).static_calls == 5
    torch.testing.assert_close(dict(model.named_buffers()), dict(other.named_buffers()))


class _Twins(nn.Module):
    """Two inputs through one encoder: its batch norm reads statistics that it has just written."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.encoder(a) - self.encoder(b)).square().sum(-1)


def test_a_batch_norm_called_twice_in_one_trace() -> None:
    model, a, b = _Twins().double(), torch.randn(5, 4).double(), torch.randn(5, 4).double()
    static, live = (lfpgraph.wrap(copy.deepcopy(model), engine=engine) for engine in ("static", "live"))
    torch.testing.assert_close(_feedback(static, static(a, b).sum()), _feedback(live, live(a, b).sum()))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return self.b(F.relu(self.a(x)) * given.scale)


def test_an_object_among_the_arguments_is_looked_into() -> None:
    torch.manual_seed(0)
    model = _Scaled()
    plain, x, given = copy.deepcopy(model), torch.randn(5, 4), SimpleNamespace()
    lfpgraph.wrap(model)
    for _ in range(3):
        given.scale = torch.rand(6)
        torch.testing.assert_close(model(x, given), plain(x, given))
    assert "SimpleNamespace" in lfpgraph.explain_wrap(model).why


def test_no_tensor_among_the_arguments() -> None:
    """Such a call cannot be traced, and runs live."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, given: Any) -> Tensor:
            return self.a(given.x)

    torch.manual_seed(0)
    model = lfpgraph.wrap(Net())
    for _ in range(3):
        assert _feedback(model, model(SimpleNamespace(x=torch.randn(3, 4))).sum())["a.weight"].any()
    assert lfpgraph.explain_wrap(model).engine == "live"


def test_a_model_that_fixes_its_sizes_is_not_traced_for_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.a(x[i]) for i in range(len(x)))  # type: ignore[return-value]

    torch.manual_seed(0)
    model = lfpgraph.wrap(Net())
    for n in range(2, 8):
        model(torch.randn(n, 4)).sum().backward()
    explained = lfpgraph.explain_wrap(model)
    assert explained.engine == "live" and explained.traces == 2


def _alike(x: Tensor) -> Tensor:
    return torch.full_like(x, 0.3).pow(x.reciprocal())


CHOICES = {
    "argmax": lambda h: F.one_hot(h.argmax(-1), 6).to(h.dtype),
    "gated": lambda h: h * F.one_hot(h.max(-1).indices, 6).double(),
    "scattered": lambda h: torch.zeros_like(h).scatter(-1, h.topk(2).indices, 1.0),
    "a part asked for its size": lambda h: F.pad(_alike(F.softplus(h[:, 1:]) + 1), (1, 0)),
    "step": lambda h: (h > 0).to(h.dtype),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_takes_its_reward_in_both_engines(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(CHOICES[name](self.a(x)))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(9, 4).double()
    static, live = (lfpgraph.wrap(copy.deepcopy(model), engine=engine) for engine in ("static", "live"))
    found = _feedback(live, live(x).square().sum())
    assert bool(found["a.weight"].any())
    torch.testing.assert_close(found, _feedback(static, static(x).square().sum()))


class _Cached(nn.Module):
    """Attention's keys of earlier calls, kept in a dictionary or a list that the caller passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, kept: Any = None) -> Tensor:
        h = self.a(x)
        if isinstance(kept, dict):
            kept["h"] = h = torch.cat([kept["h"], h]) if "h" in kept else h
        elif kept is not None:
            kept.append(h)
        return self.b(h)


@pytest.mark.parametrize("kind", [dict, list])
def test_what_is_written_into_arguments_is_there(kind: type) -> None:
    torch.manual_seed(0)
    model = _Cached()
    plain, x = copy.deepcopy(model), torch.randn(5, 4)
    lfpgraph.wrap(model)
    for _ in range(3):
        model(x).sum().backward()
    assert lfpgraph.explain_wrap(model).engine == "static"
    for _ in range(3):
        found, expected = kind(), kind()
        for _ in range(2):
            torch.testing.assert_close(model(x, found), plain(x, expected))
        torch.testing.assert_close(found, expected)
    assert lfpgraph.explain_wrap(model).engine == "live"


def test_other_arguments_are_observed_anew() -> None:
    """A number that only the second way through the model reads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.factor = nn.Linear(4, 2), 1.0

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.a(x) if y is None else F.mse_loss(self.a(x), y) * self.factor

    torch.manual_seed(0)
    model, x = lfpgraph.wrap(Net()), torch.randn(5, 4)
    for _ in range(3):
        model(x).sum().backward()
    losses = []
    for model.factor in (1.0, 1.0, 1.0, 2.0):
        losses.append(model(x, torch.zeros(5, 2)).item())
        model(x).sum().backward()
    assert losses[-1] == pytest.approx(2 * losses[0])
    assert lfpgraph.explain_wrap(model).static_calls > 4


def _penalized(model: nn.Module, x: Tensor) -> Tensor:
    """The critic's loss of a WGAN: the last call is differentiated twice."""
    real, fake = model(x), model(x + 1)
    between = (x + 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return (fake - real).mean() + (gradient.norm(dim=1) - 1).square().mean()


def test_second_derivatives_make_a_model_live() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    auto, live = (lfpgraph.wrap(copy.deepcopy(model), engine=engine) for engine in ("auto", "live"))
    for _ in range(3):
        x = torch.randn(5, 4).double()
        torch.testing.assert_close(_feedback(auto, _penalized(auto, x)), _feedback(live, _penalized(live, x)))
    assert "second derivatives" in lfpgraph.explain_wrap(auto).why


def test_a_program_says_that_it_has_no_second_derivative() -> None:
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), engine="static")
    with pytest.raises(WrapError, match="second derivative"):
        _penalized(model, torch.randn(5, 4))


def test_gradients_taken_inside_a_call_without_gradients_are_true() -> None:
    """An energy model that samples while it is evaluated."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return x - torch.autograd.grad(self.energy(x).sum(), x)[0]

    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 4)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(lfpgraph.wrap(model)(x), expected)


class _Again(torch.autograd.Function):
    """A layer that forgets what it has computed and runs once more in backward, its parameters' gradients handed on."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *parameters)
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx: Any, *signals: Any) -> Any:
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = ctx.layer(x)
        return None, *torch.autograd.grad(out, (x, *parameters), signals)


class _Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.forgets = nn.Linear(4, 6), nn.Linear(6, 2), True

    def forward(self, x: Tensor) -> Tensor:
        return self.b((_Again.apply(self.a, x, *self.a.parameters()) if self.forgets else self.a(x)).relu())


def test_a_part_called_in_a_custom_backward_scales_once() -> None:
    torch.manual_seed(0)
    model, x = _Forgetful().double(), torch.randn(5, 4).double()
    plain = copy.deepcopy(model)
    plain.forgets = False
    lfpgraph.wrap(model)
    lfpgraph.wrap(plain)
    for _ in range(2):
        found, expected = (_feedback(m, m(x).square().sum()) for m in (model, plain))
        torch.testing.assert_close(found, expected)


def test_gradients_of_inputs_alone_are_no_feedback_on_its_way(caplog: pytest.LogCaptureFixture) -> None:
    """An attack on the input, and `backward(inputs=...)`, leave parameters out: what comes later is not compared with theirs."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), engine="static")
    x = torch.randn(5, 3, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    model(x).square().sum().backward(inputs=[model[2].weight])
    model(x).square().sum().backward()
    assert "feedback only in part" not in caplog.text
