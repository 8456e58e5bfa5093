"""Dendrites: nodes added to the neurons of a trained model, which learn what the neurons still get wrong, and are then frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.parameter import is_lazy

from ...errors import PolicyError
from .base import Policy

__all__ = ["Dendrites"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Bank(nn.Module):
    """The dendrites of one layer: weights as the layer's own, and how much each neuron takes of each of its dendrites."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.biases, self.taken = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()


class Dendrites:
    """Perforated backpropagation (Brenner, Itti 2025, arXiv 2501.18018): dendrites for neurons of linear layers and convolutions.

        grown = Dendrites(model)
        ...                                             # train the model as ever
        grown.grow()                                    # one more dendrite D = f(W x + b) for each neuron, without effect as yet
        optimizer = torch.optim.Adam(grown.candidates())
        ...                                             # the same loop: loss.backward(), optimizer.step()
        grown.settle()                                  # W and b are frozen, and the neuron is z + v D from now on
        optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
        ...                                             # train the model on, v with it; then grow() again

    While they grow, dendrites ascend their correlation with the error E = dL/dz of their neuron (Fahlman and Lebiere 1990, eq. 1
    and 3), over the batch and all places, m their means:

        S = sum over o of abs( sum over n of (D_no - m(D)_o) (E_no - m(E)_o) )
        dS / dW_oi = sum over n of sign(S_o) (E_no - m(E)_o) f'(D_no) x_ni

    E is whatever arrives at the neuron: a gradient, or the signal of a wrapped model. No signal passes through a dendrite to what
    lies before it ("perforated"). Dendrites are parameters of the model, under `<layer>.dendrites`; those of one neuron do not
    see each other. Choose a composite in which v may leave zero: `lfp`, or one with `vectors="signal"`.

    Args:
        pattern, exclude: names of layers, shell style.
        activation: f.

    Raises:
        PolicyError: no such layer, or a phase that does not follow the last one.
    """

    def __init__(
        self, model: nn.Module, pattern: str | Sequence[str] = "*", exclude: str | Sequence[str] = (),
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:  # fmt: skip
        names = Policy(pattern, exclude)
        self.activation, self.growing = activation, False
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS) and names.matches(n)]
        self.layers = {n: m for n, m in found if not is_lazy(m.weight) and m.weight.is_floating_point()}
        if not self.layers:
            raise PolicyError(
                f"Dendrites: no linear layer or convolution of {type(model).__name__} with weights of floats matches "
                f"{names.pattern}"
            )
        self._learned: set[str] = set()
        for name, layer in self.layers.items():
            if hasattr(layer, "dendrites"):
                raise PolicyError(f"Dendrites: {name} has dendrites already; call grow() of those")
            layer.add_module("dendrites", _Bank())
            layer.register_forward_hook(partial(self._add, name))

    def grow(self) -> None:
        """Give every neuron one more dendrite, to be trained by correlation."""
        if self.growing:
            raise PolicyError("Dendrites are growing already: settle() them first")
        self.growing, self._learned = True, set()
        for layer in self.layers.values():
            w = layer.weight
            bound = w[0].numel() ** -0.5 if w.numel() else 0.0
            bank = _bank(layer)
            bank.weights.append(nn.Parameter(torch.empty_like(w).uniform_(-bound, bound)))
            bank.biases.append(nn.Parameter(w.new_empty(len(w)).uniform_(-bound, bound)))

    def candidates(self) -> Iterator[nn.Parameter]:
        """What an optimizer is to hold while dendrites grow."""
        if not self.growing:
            raise PolicyError("Dendrites have no candidates: grow() makes some")
        for layer in self.layers.values():
            yield from (_bank(layer).weights[-1], _bank(layer).biases[-1])

    def settle(self) -> None:
        """Freeze what has grown, and let the neurons take of it what they like, nothing at first."""
        if not self.growing:
            raise PolicyError("Dendrites are not growing: grow() comes before settle()")
        idle = [name for name in self.layers if name not in self._learned]
        if idle:
            raise PolicyError(
                f"Dendrites: no error has reached {idle[0]}, so its dendrites have learned nothing; leave it out by exclude="
            )
        for p in self.candidates():
            p.requires_grad_(False)
            p.grad = None
        self.growing = False
        for layer in self.layers.values():
            _bank(layer).taken.append(nn.Parameter(layer.weight.new_zeros(len(layer.weight))))

    def _add(self, name: str, layer: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
        """The forward hook of a layer."""
        bank, x = _bank(layer), args[0].detach()
        for w, b, v in zip(bank.weights, bank.biases, bank.taken):
            z = z + v.view(-1, *[1] * _places(layer)) * self.activation(_product(layer, x, w, b))
        if self.growing and z.requires_grad:
            z = z if len(bank.taken) else z.view_as(z)  # a tensor of its own, whose signal is the neuron's
            z.register_hook(partial(self._correlate, name, layer, x))
        return z

    def _correlate(self, name: str, layer: nn.Module, x: Tensor, error: Tensor) -> None:
        """Add minus the gradient of S to what the candidates have: optimizers go down."""
        w, b = _bank(layer).weights[-1], _bank(layer).biases[-1]
        last = -1 - _places(layer)
        with torch.enable_grad():
            node = self.activation(_product(layer, x, w, b)).movedim(last, -1).flatten(0, -2)
            error = error.detach().movedim(last, -1).flatten(0, -2)
            s = ((node - node.mean(0)) * (error - error.mean(0))).sum(0).abs().sum()
            for p, g in zip((w, b), torch.autograd.grad(-s, (w, b))):
                p.grad = g if p.grad is None else p.grad + g
        self._learned.add(name)


def _bank(layer: nn.Module) -> _Bank:
    bank = layer.get_submodule("dendrites")
    assert isinstance(bank, _Bank)
    return bank


def _places(layer: nn.Module) -> int:
    """How many dimensions come after the neurons': those of the places of a convolution."""
    return 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2  # type: ignore[operator,union-attr]


def _product(layer: nn.Module, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What the layer would make of x with other parameters."""
    return linear(x, w, b) if isinstance(layer, nn.Linear) else layer._conv_forward(x, w, b)  # type: ignore[operator]
