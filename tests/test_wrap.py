"""A wrapped module is still the module: modes, state, buffers, hooks, random numbers, saved tensors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import WrapError

from .support.helpers import assert_made, true_gradient
from .support.loop_models import (
    TwoOutputs,
    assert_close,
    assert_same_grads,
    cnn,
    dropping,
    example,
    loss_of,
    mlp,
    normed,
    twins,
)


def test_unwrap_restores(engine: str) -> None:
    model, plain = twins(mlp, "lfp-0", engine=engine)
    loss_of(model(example("mlp"))).backward()
    assert lfpgraph.is_wrapped(model)
    assert lfpgraph.unwrap(model) is model
    assert not lfpgraph.is_wrapped(model)
    assert "forward" not in vars(model) and model.forward.__func__ is nn.Sequential.forward
    model.zero_grad()
    loss_of(model(example("mlp"))).backward()
    loss_of(plain(example("mlp"))).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters()))
    with pytest.raises(WrapError, match="not wrapped"):
        lfpgraph.unwrap(model)
    lfpgraph.wrap(model, engine=engine)
    with pytest.raises(WrapError, match="wrapped already"):
        lfpgraph.wrap(model, engine=engine)


def test_unwrap_gives_back_a_forward_of_the_instance(engine: str) -> None:
    """A forward that something else had put on the instance comes back."""
    model, plain = twins(mlp, engine=engine)
    lfpgraph.unwrap(model)

    def doubled(x: Tensor) -> Tensor:
        return 2 * nn.Sequential.forward(model, x)

    model.forward = doubled
    lfpgraph.wrap(model, true_gradient(engine), engine=engine)
    loss_of(model(example("mlp"))).backward()
    loss_of(2 * plain(example("mlp"))).backward()
    assert_same_grads(model, plain)
    assert lfpgraph.unwrap(model).forward is doubled


def test_eval_mode_gives_feedback(engine: str) -> None:
    model, plain = twins(normed, engine=engine)
    for m in (model, plain):
        m(example("normed", 8, seed=9))  # move the running statistics
        m.eval()
        loss_of(m(example("normed"))).backward()
    assert_same_grads(model, plain)
    wrapped, _ = twins(cnn, "lfp-0", engine=engine)
    _, plain = twins(cnn, engine=engine)
    for m in (wrapped.eval(), plain.eval()):
        loss_of(m(example("cnn"))).backward()
    assert_same_grads(wrapped, plain, 1e-9, scaled=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_no_grad_runs_the_model_itself(mode: Callable[[], torch.no_grad], engine: str) -> None:
    model, plain = twins(normed, engine=engine)
    with mode():
        for m in (model.eval(), plain.eval()):
            m.out = m(example("normed"))
    assert torch.equal(model.out, plain.out)
    assert not model.out.requires_grad
    assert_made(model, engine, 0)


def test_batch_norm_buffers_move_as_ever(engine: str) -> None:
    model, plain = twins(normed, "lfp-epsilon", engine=engine)
    before = [id(buffer) for buffer in model.buffers()]
    start = copy.deepcopy(list(model.buffers()))
    for step in range(3):
        for m in (model, plain):
            loss_of(m(example("normed", 6, seed=step))).backward()
    assert [id(buffer) for buffer in model.buffers()] == before
    for (name, b), q, s in zip(model.named_buffers(), plain.buffers(), start):
        assert not torch.equal(b, s), f"{name} never moved"
        torch.testing.assert_close(b, q, rtol=1e-12, atol=1e-12)
    assert int(model[1].num_batches_tracked) == 3


def test_dropout_is_bit_equal_at_equal_seed(engine: str) -> None:
    model, plain = twins(dropping, engine=engine)
    outs = []
    for m in (model, plain):
        torch.manual_seed(7)
        outs.append([m(example("mlp", seed=step)) for step in range(2)])
        loss_of(torch.cat(outs[-1])).backward()
    for out, want in zip(*outs):
        assert torch.equal(out, want)
    assert not torch.equal(model(example("mlp")), model(example("mlp"))), "no mask may be baked in"
    assert_same_grads(model, plain)


def test_first_call_leaves_the_generator_alone(engine: str) -> None:
    model, _ = twins(mlp, engine=engine)
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    model(example("mlp"))
    assert torch.equal(torch.rand(4), want)


def test_clip_grad_norm(engine: str) -> None:
    model, plain = twins(cnn, engine=engine)
    for m in (model, plain):
        loss_of(m(example("cnn"))).backward()
        m.norm = nn.utils.clip_grad_norm_(m.parameters(), 0.01)
    assert_close(model.norm, plain.norm, what="norm")
    assert plain.norm > 0.01, "nothing was clipped"
    assert_same_grads(model, plain)


def test_wrap_changes_no_state(engine: str) -> None:
    torch.manual_seed(0)
    model = normed()
    state = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    signature, kind = inspect.signature(model.forward), type(model)
    assert lfpgraph.wrap(model, engine=engine) is model
    assert type(model) is kind and isinstance(model, nn.Sequential)
    assert inspect.signature(model.forward) == signature
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model(torch.randn(4, 2, 8, 8)).sum().backward()
    assert list(model.state_dict()) == list(state)
    fresh = normed()
    assert fresh.load_state_dict(model.state_dict()).missing_keys == []


def test_load_state_dict_is_seen(engine: str) -> None:
    """Either engine reads the parameters at every call, also after they were loaded or replaced."""
    model, plain = twins(mlp, engine=engine)
    model(example("mlp"))
    torch.manual_seed(99)
    other = mlp().double()
    model.load_state_dict(other.state_dict())
    model[4].weight = nn.Parameter(other[4].weight.detach() * 3)
    plain.load_state_dict(model.state_dict())
    for m in (model, plain):
        loss_of(m(example("mlp"))).backward()
    assert_same_grads(model, plain)
    assert_made(model, engine)


def test_wrapped_modules_compose_with_others(engine: str) -> None:
    """A wrapped module between plain ones passes its signal on."""
    model, plain = twins(mlp, engine=engine)
    torch.manual_seed(5)
    before, after = nn.Linear(8, 8).double(), nn.Linear(4, 3).double()
    loss_of(after(model(torch.tanh(before(example("mlp")))))).backward()
    got = [p.grad.clone() for p in (*before.parameters(), *after.parameters())]
    before.zero_grad()
    after.zero_grad()
    loss_of(after(plain(torch.tanh(before(example("mlp")))))).backward()
    for value, p in zip(got, (*before.parameters(), *after.parameters())):
        assert_close(value, p.grad)
    assert_same_grads(model, plain)


def test_wrapped_inside_wrapped(engine: str) -> None:
    """A wrapped part of a wrapped model is a part of it, and has the outer composite."""
    model, plain = twins(mlp, engine=engine)
    inner = lfpgraph.wrap(nn.Linear(4, 4).double(), "lfp-0", engine=engine)
    outer = lfpgraph.wrap(nn.Sequential(lfpgraph.unwrap(model), inner), true_gradient(engine), engine=engine)
    reference = nn.Sequential(plain, lfpgraph.unwrap(copy.deepcopy(inner)))
    for m in (outer, reference):
        loss_of(m(example("mlp"))).backward()
    assert_same_grads(outer, reference)
    assert_made(outer, engine)
    assert_made(inner, engine, 0)


def test_structured_outputs(engine: str) -> None:
    model, plain = twins(TwoOutputs, engine=engine)
    for m in (model, plain):
        out = m(x=example("mlp"))
        assert list(out) == ["left", "right"] and isinstance(out["right"], tuple) and out["right"][1] == 7
        loss_of(out["right"][0]).backward()
    assert model.left.weight.grad is None, "no reward came to this output"
    assert_close(model.body.weight.grad, plain.body.weight.grad)
    assert_close(model.right.weight.grad, plain.right.weight.grad)


def test_hooks_run(engine: str) -> None:
    model, _ = twins(mlp, engine=engine)
    seen: list[str] = []
    model.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.register_forward_hook(lambda module, args, out: seen.append("after"))
    model[0].weight.register_hook(lambda grad: seen.append("grad"))
    loss_of(model(example("mlp"))).backward()
    assert seen == ["before", "after", "grad"]


def test_learns_with_an_ordinary_optimizer(engine: str) -> None:
    """A loop with an optimizer and nothing else: LFP fits a task that the start does not solve."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), engine=engine)
    x = example("mlp", 192, torch.float32)
    y = (x @ torch.randn(8, 3, generator=torch.Generator().manual_seed(2))).argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with torch.no_grad():
        start = (model(x).argmax(1) == y).float().mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    end = (model(x).argmax(1) == y).float().mean().item()
    assert start < 0.6 and end > 0.9, (start, end)


def test_saved_tensors_are_freed(engine: str) -> None:
    """A backward lets go of what was kept; a second one says so, unless the graph was retained."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), engine=engine)
    x = torch.randn(3, 4)
    loss = model(x).sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    loss.backward()
    for a, p in zip(first, model.parameters()):
        assert p.grad is not None and torch.equal(a, p.grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_output_changed_in_place_is_noticed(engine: str) -> None:
    """Kept values that share memory with an output are watched, as autograd watches its own."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()), "lfp-epsilon", engine=engine)
    out = model(torch.randn(3, 4))
    with torch.no_grad():
        out.mul_(2)
    with pytest.raises((RuntimeError, WrapError), match="modified by an inplace operation|written into in place"):
        out.sum().backward()


def test_callers_that_write_into_outputs_run_live() -> None:
    """Where backprop does not need the output, a model whose output is masked in place trains under the default engine."""
    model = lfpgraph.wrap(nn.Linear(4, 8))
    for _ in range(3):
        out = model(torch.randn(3, 4))
        out[:, 0] = -1.0
        out.sum().backward()
    assert "written into in place" in lfpgraph.explain_wrap(model).why


def test_saved_tensor_hooks(engine: str) -> None:
    """Offloading hooks see what is kept."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), engine=engine)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    seen: list[torch.Size] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t.shape)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x).sum()
    loss.backward()
    assert torch.Size([3, 8]) in seen
    assert all(torch.equal(a, b.grad) for a, b in zip(want, model.parameters()) if b.grad is not None)


def test_calls_are_counted_once() -> None:
    """Parts that run inside a call of the model are no calls of their own, recorded or not."""
    for composite in ("gradient", "lfp-epsilon"):
        model = lfpgraph.wrap(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), composite, engine="live")
        model(torch.ones(2, 3))
        assert lfpgraph.explain_wrap(model).live_calls == 1
