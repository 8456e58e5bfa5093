"""SaRA: the smallest weights of a trained model learn something new; nothing else is moved or remembered."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import PolicyError
from .base import Pairs, Policy, checked
from .gradients import kth

__all__ = ["SaRA"]


class SaRA(Policy):
    """Trains the weights below a threshold alone, keeps what they learn of low rank, and later only those still small.

    With M = 1 where `abs(P) < threshold` when training starts (Hu et al. 2024, arXiv 2409.06633, section 4):

        P_M = P * M                                        what is trained                              (sparse updates)
        L = L_task + rank * sum over matrices of |P_M|_*   its gradient is rank * M * (U V^T)           (nuclear norm)
        M <- M * (abs(P) < threshold) after `progressive` steps, the optimizer's memory of them made new (progressive adjustment)

    with `P_M = U S V^T` in the reduced form, singular values that are zero left out. What backward makes for a whole matrix
    is cut down to its trained entries at once, before the next matrix is reached, and the optimizer holds those alone
    (unstructural backpropagation): memory for gradients and for what an optimizer remembers falls to the share that is
    trained. So `.grad` of the model's parameters is None when the optimizer steps, and a trainer that clips
    `model.parameters()` clips nothing: clip the optimizer's parameters, as `lfpgraph.Trainer` does. Weight decay moves
    trained entries alone. One process: gradients are cut before others could share them.

    Args:
        share: of the entries of all parameters together, the smallest; or give `threshold`, in units of the parameters.
        progressive: half of all steps there; None for one phase.
        rank: lambda; costs a singular value decomposition of each matrix and step. Convolutions count as matrices [o, rest].

    Raises:
        PolicyError: values out of range, no entry below the threshold, or the policy called without an optimizer.
    """

    def __init__(
        self, share: float | None = None, *, threshold: float | None = None, progressive: int | None = None,
        rank: float = 0.0, **names: Any,
    ) -> None:  # fmt: skip
        super().__init__(**names)
        if (share is None) == (threshold is None):
            raise PolicyError("SaRA needs a share, or else a threshold")
        self.share = None if share is None else checked("share", share, 0.0, 1.0)
        self.threshold = None if threshold is None else checked("threshold", threshold, 0.0, float("inf"))
        self.progressive = None if progressive is None else int(checked("progressive", progressive, 1, float("inf")))
        self.rank = checked("rank", rank, 0.0, float("inf")) if rank else 0.0
        self.masks: dict[str, Tensor] = {}
        self.trained: dict[str, nn.Parameter] = {}
        self.steps = 0
        self._whole: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._optimizer: Optimizer | None = None

    def start(self, parameters: Pairs, optimizer: Optimizer) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise PolicyError("SaRA cuts gradients down before processes could share them: use it in one process")
        parameters = [(name, p) for name, p in parameters if p.requires_grad]  # frozen ones get no gradient to cut
        if not parameters:
            raise PolicyError("SaRA: all parameters that it is to act on are frozen")
        self._whole, self._optimizer, self.masks, self.steps = dict(parameters), optimizer, {}, 0
        if self.threshold is None:
            assert self.share is not None
            # The smallest entry that is left out bounds those that are trained.
            sizes = torch.cat([p.abs().flatten().float() for _, p in parameters])
            self.threshold = float(
                torch.nextafter(kth(sizes, self.share, largest=False), sizes.new_tensor(float("inf")))
            )
        self._choose({name: self._small(p) for name, p in parameters})
        for name, p in parameters:
            p.grad = None
            self._hooks.append(p.register_post_accumulate_grad_hook(partial(self._cut, name)))

    def _choose(self, masks: dict[str, Tensor]) -> None:
        """Let the optimizer hold the entries of these masks in place of what it holds."""
        if not any(bool(mask.any()) for mask in masks.values()):
            raise PolicyError(f"SaRA: no entry of {len(masks)} parameters is below the threshold {self.threshold:g}")
        assert self._optimizer is not None
        for name, mask in masks.items():
            p = self._whole[name]
            entries = p.detach()[mask.to(p.device)].clone()
            self.masks[name] = mask
            if name in self.trained:  # the same parameter with other entries: schedulers and clipping know it
                self._optimizer.state.pop(self.trained[name], None)
                self.trained[name].grad, self.trained[name].data = None, entries
            else:
                self.trained[name] = nn.Parameter(entries)
                self._exchange(p, self.trained[name])

    def _exchange(self, old: Tensor, new: Tensor) -> None:
        assert self._optimizer is not None
        self._optimizer.state.pop(old, None)
        for group in self._optimizer.param_groups:
            group["params"] = [new if q is old else q for q in group["params"]]

    def _cut(self, name: str, p: Tensor) -> None:
        """Keep the trained entries of a gradient, and let the rest go."""
        if p.grad is not None:
            trained, kept = self.trained[name], p.grad[self.masks[name].to(p.device)]
            trained.grad = kept if trained.grad is None else trained.grad + kept
            p.grad = None

    def __call__(self, parameters: Any) -> None:
        if self._optimizer is None:
            raise PolicyError("SaRA has to be attached to an optimizer, whose parameters it exchanges")
        with torch.no_grad():
            self.apply([])

    def apply(self, parameters: Pairs) -> None:
        for name, trained in self.trained.items():
            p, mask = self._whole[name], self.masks[name]
            self._cut(name, p)  # one that was set by hand
            trained.copy_(p[mask.to(p.device)])  # weights may have been loaded since
            if self.rank and p.dim() > 1 and trained.grad is not None:
                trained.grad += self.rank * _low_rank(p, mask.to(p.device))

    def after(self) -> None:
        for name, trained in self.trained.items():
            self._whole[name][self.masks[name].to(trained.device)] = trained.detach()
        self.steps += 1
        if self.steps == self.progressive:
            self._choose(
                {name: mask & self._small(self._whole[name]).to(mask.device) for name, mask in self.masks.items()}
            )

    def _small(self, p: Tensor) -> Tensor:
        assert self.threshold is not None
        return p.abs() < self.threshold

    def stop(self) -> None:
        for name, trained in self.trained.items():
            self._exchange(trained, self._whole[name])
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.trained, self._optimizer = [], {}, None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "threshold": self.threshold, "masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.threshold = state["steps"], state["threshold"]
        with torch.no_grad():
            self._choose(dict(state["masks"]))


def _low_rank(p: Tensor, mask: Tensor) -> Tensor:
    """The gradient of the nuclear norm at the masked entries of a matrix [o, ...]."""
    u, s, v = torch.linalg.svd(
        (p.detach() * mask).flatten(1).to(torch.promote_types(p.dtype, torch.float32)), full_matrices=False
    )
    kept = s > s.new_tensor(torch.finfo(s.dtype).eps) * max(s.shape[-1], 1) * s.max() if s.numel() else s > 0
    return ((u * kept) @ v).reshape(p.shape)[mask].to(p.dtype)
