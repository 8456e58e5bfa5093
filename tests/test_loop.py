"""What a step leaves in `.grad`, in any training loop: accumulation, freezing, tying, sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lfpgraph import get_composite

from .support.helpers import assert_made
from .support.loop_models import (
    MODELS,
    TOLERANCE,
    Tied,
    assert_close,
    assert_same_grads,
    cnn,
    example,
    loss_of,
    mlp,
    normed,
    smooth,
    twins,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_composite_is_autograd(name: str, dtype: torch.dtype, engine: str) -> None:
    model, plain = twins(MODELS[name], dtype=dtype, engine=engine)
    x = example(name, dtype=dtype)
    out, want = model(x), plain(x)
    assert_close(out, want, TOLERANCE[dtype], "output")
    loss_of(out).backward()
    loss_of(want).backward()
    assert_made(model, engine)
    assert_same_grads(model, plain, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["mlp", "cnn", "recurring", "tied"])
def test_theorem_one(name: str, engine: str) -> None:
    """In a ReLU net the zero rule's feedback is |w| times the gradient, the input's signal the gradient."""
    model, plain = twins(MODELS[name], "lfp-0", engine=engine)
    x, y = example(name).requires_grad_(), example(name).requires_grad_()
    loss_of(model(x)).backward()
    loss_of(plain(y)).backward()
    assert_same_grads(model, plain, 1e-9, scaled=True)
    assert_close(x.grad, y.grad, 1e-9, "input")
    first, q = next(model.parameters()), next(plain.parameters())
    assert (first.grad - q.grad).abs().max() > 0.1 * q.grad.abs().max(), "feedback is more than the gradient"


def test_smooth_net_is_not_its_gradient(engine: str) -> None:
    """Theorem 1 stops at ReLU: with tanh and GELU the rules must have run, not the derivatives."""
    model, plain = twins(smooth, "lfp-0", engine=engine)
    x = example("smooth")
    loss_of(model(x)).backward()
    loss_of(plain(x)).backward()
    p, q = next(model.parameters()), next(plain.parameters())
    want = q.detach().abs() * q.grad
    assert (p.grad - want).abs().max() > 0.05 * want.abs().max()
    last, other = model[-1].weight, plain[-1].weight  # nothing but a linear layer behind it
    assert_close(last.grad, other.detach().abs() * other.grad, 1e-9, "last layer")


class Starting(nn.Module):
    """Begins with an operation whose rule is not its gradient."""

    def __init__(self, first: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("first", [torch.sin, nn.functional.normalize], ids=["sine", "normalised"])
def test_both_engines_hand_an_input_the_same_signal(first: Callable[[Tensor], Tensor]) -> None:
    found = []
    for engine in ("live", "static"):
        model, _ = twins(lambda: Starting(first), "lfp-epsilon", engine=engine)
        x = example("mlp").requires_grad_()
        loss_of(model(x)).backward()
        found.append(x.grad)
    assert_close(*found, 1e-12)


class Meeting(nn.Module):
    """At one value a plain signal arrives, of a layer, and a stabilized one, of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.sin(h) + self.second(h))


def test_both_engines_add_signals_of_two_forms_alike() -> None:
    rules = get_composite("lfp-epsilon").with_options(epsilon=0.1)
    models = [twins(Meeting, rules, engine=engine)[0] for engine in ("live", "static")]
    for model in models:
        loss_of(model(example("mlp"))).backward()
    for live, static in zip(*(model.parameters() for model in models)):
        assert_close(live.grad, static.grad, 1e-12)


def assert_same_step(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    for m in (model, plain):
        m.zero_grad()
        loss_of(m(x)).backward()
    assert_same_grads(model, plain)


def test_other_batch_sizes_need_no_second_trace_or_plan(engine: str) -> None:
    model, plain = twins(cnn, engine=engine)
    for batch in (5, 3, 7, 2, 16):
        assert_same_step(model, plain, example("cnn", batch, seed=batch))
    assert_made(model, engine)


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_batch_of_one(name: str, first: int, engine: str) -> None:
    """A batch of one is right and needs no trace or plan of its own, whether it comes first or later."""
    model, plain = twins(MODELS[name], engine=engine)
    for batch in (first, 1, 3, 1):
        assert_same_step(model, plain, example(name, batch, seed=batch))
    assert_made(model, engine)


def test_accumulation_two_forwards_then_two_backwards(engine: str) -> None:
    model, plain = twins(normed, engine=engine)
    for m in (model, plain):
        first, second = loss_of(m(example("normed", 5, seed=1))), loss_of(m(example("normed", 3, seed=2)))
        first.backward()
        second.backward()
    assert_same_grads(model, plain)
    for m in (model, plain):  # a third, into the same .grad, without zero_grad
        loss_of(m(example("normed", 4, seed=3))).backward()
    assert_same_grads(model, plain)


def test_two_forwards_before_one_backward(engine: str) -> None:
    model, plain = twins(mlp, engine=engine)
    for m in (model, plain):
        (loss_of(m(example("mlp", 5, seed=1))) * 2 + loss_of(m(example("mlp", 6, seed=2)))).backward()
    assert_same_grads(model, plain)


def test_retained_graph_gives_feedback_twice(engine: str) -> None:
    model, plain = twins(mlp, engine=engine)
    loss, want = loss_of(model(example("mlp"))), loss_of(plain(example("mlp")))
    for value in (loss, want):
        value.backward(retain_graph=True)
        value.backward()
    assert_same_grads(model, plain)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    model, _ = twins(smooth, "lfp-epsilon", engine=engine)  # whose rules look at values, which must still be there
    once = copy.deepcopy(model)
    loss_of(once(example("smooth"))).backward()
    loss = loss_of(model(example("smooth")))
    loss.backward(retain_graph=True)
    loss.backward()
    for p, q in zip(model.parameters(), once.parameters()):
        assert_close(p.grad, 2 * q.grad, 1e-12)


def test_frozen_parameters_get_no_feedback(engine: str) -> None:
    model, plain = twins(mlp, "lfp-0", engine=engine)
    for m in (model, plain):
        m[2].requires_grad_(False)
        m[0].bias.requires_grad_(False)
        loss_of(m(example("mlp"))).backward()
    assert model[2].weight.grad is None and model[2].bias.grad is None and model[0].bias.grad is None
    assert_same_grads(model, plain, 1e-9, scaled=True)
    for m in (model, plain):  # thawed between steps, as fine-tuning schedules do
        m.zero_grad()
        m.requires_grad_(True)
        loss_of(m(example("mlp"))).backward()
    assert model[2].weight.grad is not None
    assert_same_grads(model, plain, 1e-9, scaled=True)


def test_all_frozen(engine: str) -> None:
    """Without an input to send a signal to there is nothing to trace or plan; with one it gets its signal alone."""
    model, plain = twins(mlp, engine=engine)
    for m in (model, plain):
        m.requires_grad_(False)
    assert not model(example("mlp")).requires_grad
    assert_made(model, engine, 0)
    x, y = example("mlp").requires_grad_(), example("mlp").requires_grad_()
    loss_of(model(x)).backward()
    loss_of(plain(y)).backward()
    assert_close(x.grad, y.grad, what="input")
    assert all(p.grad is None for p in model.parameters())


def test_tied_weights_stay_one_parameter(engine: str) -> None:
    model, plain = twins(Tied, "lfp-0", engine=engine)
    assert model.second.weight is model.third.weight
    assert len(list(model.parameters())) == 5
    for m in (model, plain):
        optimizer = torch.optim.SGD([m.second.weight], lr=0.1)
        loss_of(m(example("tied"))).backward()
        if m is plain:
            m.second.weight.grad *= m.second.weight.detach().abs()
        optimizer.step()
    assert model.second.weight is model.third.weight
    assert_close(model.third.weight.detach(), plain.third.weight.detach(), 1e-9, "tied weight after a step")
