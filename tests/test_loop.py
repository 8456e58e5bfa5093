"""Any training loop: what a user may do with a module still holds for a wrapped one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.errors import WrapError

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and lose much where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recurring(nn.Module):
    """Calls one of its modules twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.again = nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.last(F.relu(self.again(F.relu(self.again(hidden)))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, 16)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x)))))


class TwoOutputs(nn.Module):
    """Returns a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.left = nn.Linear(16, 4)
        self.right = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, int]]:
        hidden = F.relu(self.body(x))
        return {"left": self.left(hidden), "right": (self.right(hidden), 7)}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp, "smooth": smooth, "cnn": cnn, "normed": normed, "recurring": Recurring, "tied": Tied,
}  # fmt: skip


def example(name: str, batch: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    shape = (batch, 2, 8, 8) if name in ("cnn", "normed") else (batch, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twins(
    make: Callable[[], nn.Module], composite: str = "gradient", dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, nn.Module]:
    """A wrapped model and its plain copy."""
    torch.manual_seed(0)
    plain = make().to(dtype)
    return lfpgraph.wrap(copy.deepcopy(plain), composite), plain


def loss_of(out: Tensor) -> Tensor:
    """A loss whose gradient differs from sample to sample and from output to output."""
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view_as(out)
    return (out * out * weights).sum() + (out * weights).mean()


def assert_close(got: Tensor | None, want: Tensor | None, tolerance: float = 1e-10, what: str = "") -> None:
    """Largest difference relative to the largest value; a zero expectation would prove nothing."""
    assert got is not None and want is not None, what
    assert got.dtype == want.dtype and got.shape == want.shape, what
    assert want.abs().max() > 0, f"{what}: nothing to compare with"
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= tolerance, f"{what}: relative difference {error:.2e}"


def assert_same_grads(model: nn.Module, plain: nn.Module, tolerance: float = 1e-10, scaled: bool = False) -> None:
    """`.grad` of every parameter as in `plain`, or that times |w|."""
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        if not q.requires_grad:
            assert p.grad is None, name
            continue
        want = q.detach().abs() * q.grad if scaled else q.grad
        assert_close(p.grad, want, tolerance, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_composite_is_autograd(name: str, dtype: torch.dtype) -> None:
    model, plain = twins(MODELS[name], dtype=dtype)
    x = example(name, dtype=dtype)
    out, want = model(x), plain(x)
    assert_close(out, want, TOLERANCE[dtype], "output")
    loss_of(out).backward()
    loss_of(want).backward()
    assert model.forward.traces == 1
    assert_same_grads(model, plain, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["mlp", "cnn", "recurring", "tied"])
def test_theorem_one(name: str) -> None:
    """In a ReLU net the zero rule's feedback is |w| times the gradient, the input's signal the gradient."""
    model, plain = twins(MODELS[name], "lfp-0")
    x, y = example(name).requires_grad_(), example(name).requires_grad_()
    loss_of(model(x)).backward()
    loss_of(plain(y)).backward()
    assert_same_grads(model, plain, 1e-9, scaled=True)
    assert_close(x.grad, y.grad, 1e-9, "input")
    first, q = next(model.parameters()), next(plain.parameters())
    assert (first.grad - q.grad).abs().max() > 0.1 * q.grad.abs().max(), "feedback is more than the gradient"


def test_smooth_net_is_not_its_gradient() -> None:
    """Theorem 1 stops at ReLU: with tanh and GELU the rules must have run, not the derivatives."""
    model, plain = twins(smooth, "lfp-0")
    x = example("smooth")
    loss_of(model(x)).backward()
    loss_of(plain(x)).backward()
    p, q = next(model.parameters()), next(plain.parameters())
    want = q.detach().abs() * q.grad
    assert (p.grad - want).abs().max() > 0.05 * want.abs().max()
    last, other = model[-1].weight, plain[-1].weight  # nothing but a linear layer behind it
    assert_close(last.grad, other.detach().abs() * other.grad, 1e-9, "last layer")


def test_other_batch_sizes_need_no_second_trace() -> None:
    model, plain = twins(cnn)
    for batch in (5, 3, 7, 2, 16):
        x = example("cnn", batch, seed=batch)
        model.zero_grad()
        plain.zero_grad()
        loss_of(model(x)).backward()
        loss_of(plain(x)).backward()
        assert_same_grads(model, plain)
    assert model.forward.traces == 1


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_batch_of_one(name: str, first: int) -> None:
    """A batch of one is right and needs no trace of its own, whether it comes first or later."""
    model, plain = twins(MODELS[name])
    for batch in (first, 1, 3, 1):
        x = example(name, batch, seed=batch)
        model.zero_grad()
        plain.zero_grad()
        loss_of(model(x)).backward()
        loss_of(plain(x)).backward()
        assert_same_grads(model, plain)
    assert model.forward.traces == 1


def test_accumulation_two_forwards_then_two_backwards() -> None:
    model, plain = twins(normed)
    for m in (model, plain):
        first, second = loss_of(m(example("normed", 5, seed=1))), loss_of(m(example("normed", 3, seed=2)))
        first.backward()
        second.backward()
    assert_same_grads(model, plain)
    for m in (model, plain):  # a third, into the same .grad, without zero_grad
        loss_of(m(example("normed", 4, seed=3))).backward()
    assert_same_grads(model, plain)


def test_two_forwards_before_one_backward() -> None:
    model, plain = twins(mlp)
    for m in (model, plain):
        (loss_of(m(example("mlp", 5, seed=1))) * 2 + loss_of(m(example("mlp", 6, seed=2)))).backward()
    assert_same_grads(model, plain)


def test_retained_graph_gives_feedback_twice() -> None:
    model, plain = twins(mlp)
    loss, want = loss_of(model(example("mlp"))), loss_of(plain(example("mlp")))
    for value in (loss, want):
        value.backward(retain_graph=True)
        value.backward()
    assert_same_grads(model, plain)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_frozen_parameters_get_no_feedback() -> None:
    model, plain = twins(mlp, "lfp-0")
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


def test_all_frozen() -> None:
    """Without an input to send a signal to there is nothing to trace; with one it gets its signal alone."""
    model, plain = twins(mlp)
    for m in (model, plain):
        m.requires_grad_(False)
    assert not model(example("mlp")).requires_grad
    assert model.forward.traces == 0
    x, y = example("mlp").requires_grad_(), example("mlp").requires_grad_()
    loss_of(model(x)).backward()
    loss_of(plain(y)).backward()
    assert_close(x.grad, y.grad, what="input")
    assert all(p.grad is None for p in model.parameters())


def test_tied_weights_stay_one_parameter() -> None:
    model, plain = twins(Tied, "lfp-0")
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


def test_unwrap_restores() -> None:
    model, plain = twins(mlp, "lfp-0")
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
    lfpgraph.wrap(model)
    with pytest.raises(WrapError, match="wrapped already"):
        lfpgraph.wrap(model)


def test_unwrap_gives_back_a_forward_of_the_instance() -> None:
    """A forward that something else had put on the instance comes back."""
    model, plain = twins(mlp)
    lfpgraph.unwrap(model)

    def doubled(x: Tensor) -> Tensor:
        return 2 * nn.Sequential.forward(model, x)

    model.forward = doubled
    lfpgraph.wrap(model, "gradient")
    loss_of(model(example("mlp"))).backward()
    loss_of(2 * plain(example("mlp"))).backward()
    assert_same_grads(model, plain)
    assert lfpgraph.unwrap(model).forward is doubled


def test_eval_mode_gives_feedback() -> None:
    model, plain = twins(normed)
    for m in (model, plain):
        m(example("normed", 8, seed=9))  # move the running statistics
        m.eval()
        loss_of(m(example("normed"))).backward()
    assert_same_grads(model, plain)
    wrapped, _ = twins(cnn, "lfp-0")
    _, plain = twins(cnn)
    for m in (wrapped.eval(), plain.eval()):
        loss_of(m(example("cnn"))).backward()
    assert_same_grads(wrapped, plain, 1e-9, scaled=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_no_grad_runs_the_model_itself(mode: Callable[[], torch.no_grad]) -> None:
    model, plain = twins(normed)
    with mode():
        for m in (model.eval(), plain.eval()):
            m.out = m(example("normed"))
    assert torch.equal(model.out, plain.out)
    assert not model.out.requires_grad and model.forward.traces == 0


def test_batch_norm_buffers_move_as_ever() -> None:
    model, plain = twins(normed, "lfp-epsilon")
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


def test_dropout_is_bit_equal_at_equal_seed() -> None:
    model, plain = twins(dropping)
    outs = []
    for m in (model, plain):
        torch.manual_seed(7)
        outs.append([m(example("mlp", seed=step)) for step in range(2)])
        loss_of(torch.cat(outs[-1])).backward()
    for out, want in zip(*outs):
        assert torch.equal(out, want)
    assert not torch.equal(model(example("mlp")), model(example("mlp"))), "no mask may be baked in"
    assert_same_grads(model, plain)


def test_tracing_leaves_the_generator_alone() -> None:
    model, _ = twins(mlp)
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    model(example("mlp"))
    assert torch.equal(torch.rand(4), want)


def test_clip_grad_norm() -> None:
    model, plain = twins(cnn)
    for m in (model, plain):
        loss_of(m(example("cnn"))).backward()
        m.norm = nn.utils.clip_grad_norm_(m.parameters(), 0.01)
    assert_close(model.norm, plain.norm, what="norm")
    assert plain.norm > 0.01, "nothing was clipped"
    assert_same_grads(model, plain)


def test_wrap_changes_no_state() -> None:
    torch.manual_seed(0)
    model = normed()
    state = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    signature, kind = inspect.signature(model.forward), type(model)
    assert lfpgraph.wrap(model) is model
    assert type(model) is kind and isinstance(model, nn.Sequential)
    assert inspect.signature(model.forward) == signature
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model(torch.randn(4, 2, 8, 8)).sum().backward()
    assert list(model.state_dict()) == list(state)
    fresh = normed()
    assert fresh.load_state_dict(model.state_dict()).missing_keys == []


def test_load_state_dict_is_seen_by_the_program() -> None:
    """The program reads the parameters at every call, also after they were loaded or replaced."""
    model, plain = twins(mlp)
    model(example("mlp"))
    torch.manual_seed(99)
    other = mlp().double()
    model.load_state_dict(other.state_dict())
    model[4].weight = nn.Parameter(other[4].weight.detach() * 3)
    plain.load_state_dict(model.state_dict())
    for m in (model, plain):
        loss_of(m(example("mlp"))).backward()
    assert_same_grads(model, plain)
    assert model.forward.traces == 1


def test_wrapped_modules_compose_with_others() -> None:
    """A wrapped module between plain ones passes its signal on."""
    model, plain = twins(mlp)
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


def test_wrapped_inside_wrapped() -> None:
    """A wrapped part of a wrapped model is traced as a part of it, by the outer composite."""
    model, plain = twins(mlp)
    inner = lfpgraph.wrap(nn.Linear(4, 4).double(), "lfp-0")
    outer = lfpgraph.wrap(nn.Sequential(lfpgraph.unwrap(model), inner), "gradient")
    reference = nn.Sequential(plain, lfpgraph.unwrap(copy.deepcopy(inner)))
    for m in (outer, reference):
        loss_of(m(example("mlp"))).backward()
    assert_same_grads(outer, reference)
    assert inner.forward.traces == 0


def test_structured_outputs() -> None:
    model, plain = twins(TwoOutputs)
    for m in (model, plain):
        out = m(x=example("mlp"))
        assert list(out) == ["left", "right"] and isinstance(out["right"], tuple) and out["right"][1] == 7
        loss_of(out["right"][0]).backward()
    assert model.left.weight.grad is None or not model.left.weight.grad.any(), "no reward came to this output"
    assert_close(model.body.weight.grad, plain.body.weight.grad)
    assert_close(model.right.weight.grad, plain.right.weight.grad)


def test_hooks_run() -> None:
    model, _ = twins(mlp)
    seen: list[str] = []
    model.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.register_forward_hook(lambda module, args, out: seen.append("after"))
    model[0].weight.register_hook(lambda grad: seen.append("grad"))
    loss_of(model(example("mlp"))).backward()
    assert seen == ["before", "after", "grad"]


def test_learns_with_an_ordinary_optimizer() -> None:
    """A loop with an optimizer and nothing else: LFP fits a task that the start does not solve."""
    torch.manual_seed(0)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))
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


def test_saved_tensors_are_freed() -> None:
    """A backward lets go of what was kept; a second one says so, unless the graph was retained."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
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


def test_output_changed_in_place_is_noticed() -> None:
    """Kept values that share memory with an output are watched, as autograd watches its own."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()))
    out = model(torch.randn(3, 4))
    with torch.no_grad():
        out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_saved_tensor_hooks() -> None:
    """Offloading hooks see what is kept."""
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
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
