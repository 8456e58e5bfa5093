"""Tools of torch around and inside a model."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from .table import case, data, loss_of, mlp, train


@case()
def dispatch_mode_outside():
    """A dispatch mode around the call: a counter of floating-point operations."""

    def step(model, i):
        with FlopCounterMode(display=False) as counter:
            out = model(data(5, 6))
        loss_of(out).backward()
        return out, counter.get_total_flops()

    return mlp(6, 8, 3), step


@case(static=True)
def function_mode_inside():
    """A torch-function mode inside forward."""

    class Double(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return out * 2 if func is torch.nn.functional.linear else out

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            with Double():
                h = self.a(x)
            return self.b(h.relu())

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case(static=True, same=True)
def selective_checkpoint():
    """A checkpoint that keeps the results of some operations."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = mlp(6, 8, 6), nn.Linear(6, 3)

        def forward(self, x):
            def keep(ctx, op, *args, **kwargs):
                return CheckpointPolicy.MUST_SAVE if "mm" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

            contexts = lambda: create_selective_checkpoint_contexts(keep)  # noqa: E731
            return self.b(checkpoint(self.a, x, use_reentrant=False, context_fn=contexts).relu())

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case()
def anomaly_detection():
    """Anomaly detection, which keeps the forward's traceback on each node."""

    def step(model, i):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.set_detect_anomaly(True):
                return train(model, data(5, 6))

    return mlp(6, 8, 3), step


@case(static=True)
def profiled():
    """The profiler around a step."""

    def step(model, i):
        with torch.autograd.profiler.profile():
            return train(model, data(5, 6))

    return mlp(6, 8, 3), step


@case(static=True)
def data_swapped():
    """Parameters' data replaced, swapped and written from a vector between steps."""

    def step(model, i):
        if i == 1:
            model[0].weight.data = model[0].weight.data * 2
            torch.nn.utils.vector_to_parameters(
                nn.utils.parameters_to_vector(model.parameters()).detach() * 0.9, model.parameters()
            )
        if i == 2:
            with torch.no_grad():
                model[2].weight.copy_(data(3, 8, seed=5))
                model[2].bias.clamp_(min=0)
        return train(model, data(5, 6))

    return mlp(6, 8, 3), step


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)
        self.register_buffer("shadow", data(3, 6, seed=4))

    def forward(self, x):
        with torch.no_grad():
            self.b.weight.div_(self.b.weight.norm(dim=1, keepdim=True))
            self.shadow.lerp_(self.b.weight, 0.5)
            self.a.weight.data.clamp_(-0.3, 0.3)
        x = x.clone()
        y = x + 1
        x.mul_(0.5)
        h = self.a(x) * y
        self.penalty = sum((p**2).sum() for p in self.parameters())
        return self.b(h.relu() + x) + h @ self.shadow.mT


@case()
def weights_written_in_forward():
    """forward normalises a weight, moves a buffer, clamps another weight, writes to its input's copy; a penalty on weights."""

    def step(model, i):
        out = model(data(5, 6))
        (loss_of(out) + 1e-2 * model.penalty).backward()
        return out

    return Normed(), step


@case(static=True)
def codebook():
    """Vector quantisation: nearest codes, straight-through, codes moved by an average."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 6)
            self.codes = nn.Embedding(5, 4)
            self.register_buffer("count", torch.zeros(5))

        def forward(self, x):
            z = self.a(x)
            ids = torch.cdist(z, self.codes.weight).argmin(-1)
            q = self.codes(ids)
            self.count.index_add_(0, ids, torch.ones(len(ids)))
            loss = ((q - z.detach()) ** 2).mean() + 0.25 * ((q.detach() - z) ** 2).mean()
            return self.b(z + (q - z).detach()), loss, ids

    def step(model, i):
        out, loss, ids = model(data(7, 6))
        (loss_of(out) + loss).backward()
        return out, loss, ids

    return Model(), step


@case()
def teacher_and_student():
    """A frozen teacher and an averaged copy of the weights inside the model."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = mlp(6, 8, 3), mlp(6, 8, 3)
            self.teacher.requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                for p, q in zip(self.teacher.parameters(), self.student.parameters()):
                    p.lerp_(q, 0.1)
                target = self.teacher(x)
            return self.student(x), target

    def step(model, i):
        out, target = model(data(5, 6))
        ((out - target) ** 2).mean().backward()
        return out, target

    return Model(), step


@case()
def data_parallel():
    """DataParallel without devices, around the model."""

    def step(model, i):
        return train(model, data(5, 6))

    return nn.DataParallel(mlp(6, 8, 3)), step


@case()
def own_call():
    """A class with a __call__ of its own, and a forward that takes gradients of its parameters."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs) * 2

        def forward(self, x):
            inner = self.layer(x).pow(2).mean()
            (g,) = torch.autograd.grad(inner, self.layer.weight, create_graph=True)
            return self.head((x @ (self.layer.weight - 0.1 * g).mT).relu())

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case(static=True, same=True)
def hypernetwork():
    """Weights made by a network from a code, and from the input itself."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.make = nn.Parameter(data(4, seed=3)), nn.Linear(4, 18)
            self.meet = nn.Linear(6, 18)

        def forward(self, x):
            w = self.make(self.code).view(3, 6)
            own = self.meet(x).view(-1, 3, 6)
            return x @ w.mT + torch.einsum("boi,bi->bo", own, x)

    def step(model, i):
        return train(model, data(5, 6))

    return Model(), step


@case()
def forward_mode_outside():
    """A forward-mode derivative of the model between the steps."""

    def step(model, i):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(data(5, 6), torch.ones(5, 6))
            tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent.detach()
        return train(model, data(5, 6)), tangent

    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), step


@case(says=("transforms of torch.func", "no feedback"))
def func_grad_outside():
    """torch.func.grad and vmap of the model: the true derivative by torch's own transforms."""

    def step(model, i):
        params = {k: v.detach() for k, v in model.named_parameters()}
        g = torch.func.grad(lambda p: loss_like(torch.func.functional_call(model, p, (data(5, 6),))))(params)
        v = torch.func.vmap(model)(data(4, 5, 6))
        loss_of(v).backward()
        return list(g.values()), v

    def loss_like(out: Tensor) -> Tensor:
        return (out**2).mean()

    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), step


@case()
def exported_and_scripted():
    """torch.export, jit.trace and fx.symbolic_trace of the model while it is wrapped."""

    def step(model, i):
        x = data(5, 6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a = torch.export.export(model, (x,)).module()(x)
            b = torch.jit.trace(model, x)(x)
            c = torch.fx.symbolic_trace(model)(x)
        return train(model, x), a.detach(), b.detach(), c.detach()

    return mlp(6, 8, 3), step
