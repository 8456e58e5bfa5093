"""The unified policy gradient of post-training: a reward of log-probabilities with REINFORCE, PPO, GRPO and SFT as settings.

    gradient = stable * advantage / reference * d probability        (Lv et al. 2025, arXiv 2509.04419)

In terms of the log-probability log_p of what was said, with `d probability = probability * d log_p`, its signal is

    s = stable * advantage * exp(log_p - reference) - kl * (1 - exp(l_kl - log_p))

| part | choices |
|---|---|
| reference, a logarithm | "self": log_p itself, so that the factor is 1; "old": that of the policy that spoke; "one": 0 |
| stable | 0 where a ratio to the old policy has left its bounds on the side that the advantage pushes to; else 1 |
| advantage | a number for each sequence or token: `group_advantages`, `generalized_advantages`, 1 for demonstrations |
| kl | how much of the divergence from a third policy is taken off (Schulman's k3 estimate) |

| setting | reference | stable | mean over | source |
|---|---|---|---|---|
| `sft` | self | 1 | tokens | the likelihood of demonstrations |
| `dft` | one | 1 | tokens | Wu et al. 2025, arXiv 2508.05629 |
| `reinforce` | self | 1 | sequences of their sums | Williams 1992 |
| `rloo` | old, of the whole sequence | clip | sequences of their sums | Ahmadian et al. 2024, arXiv 2402.14740 |
| `ppo` | old | clip | tokens | Schulman et al. 2017, arXiv 1707.06347, eq. 7 |
| `grpo` | old | clip | sequences of their means | Shao et al. 2024, arXiv 2402.03300, eq. 3 |
| `dr_grpo` | old | clip | sequences of their sums over a fixed length | Liu et al. 2025, arXiv 2503.20783 |
| `dapo` | old | clip, wider above | tokens | Yu et al. 2025, arXiv 2503.14476, eq. 8 |
| `gspo` | old, geometric mean of a sequence | clip | sequences of their means | Zheng et al. 2025, arXiv 2507.18071, eq. 5 |
| `cispo` | the larger of old and log_p - log(cap) | 1 | tokens | MiniMax 2025, arXiv 2506.13585, eq. 4 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RewardError, check_choice
from .checks import indices

__all__ = ["PolicyGradient", "log_probs_of"]


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-probabilities of what was said: logits [..., c] and tokens [...] give [...], with its way back to the logits.

    Logits stand at the place of the token that they foretell; those of causal language models have to be moved by one.
    """
    tokens = indices(tokens, logits.shape[:-1], logits.shape[-1], "tokens").to(logits.device)
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class PolicyGradient:
    """A reward of log-probabilities [n, t], or [n] where one thing was said at a time. The module's docstring has the formula.

        policy = rewards.PolicyGradient.grpo()
        log_p = rewards.log_probs_of(logits, tokens)
        policy.loss(log_p, rewards.group_advantages(scores, questions), old=l_then, mask=mask).backward()

    Called, it returns the reward `log_p * s` of each log-probability, for `reward_loss`. `loss` is the same, not divided by
    log_p, so that it also holds for what was certain (log_p = 0). Its value is the paper's objective with the sign of a loss.

    Args:
        reference: "self", "old" or "one".
        low, high: a ratio below `1 - low` stops the push down, one above `1 + high` the push up; None for no bound.
        most: a ratio above it stops the push down, too (TRL's `delta`); None for no bound.
        cap: ratios count as that much at most, and nothing is stopped; None for no cap.
        level: of the ratio: "token"; "sequence", the geometric mean over its tokens; "product" of its tokens.
        mean: over "tokens" of the batch; over "sequences", of each the mean; "sums", over sequences of their sums.
        length: sums are divided by it.
        kl: weight of the divergence.
        kl_weighted: the divergence of each token counts by its ratio to the old policy, so that it is that of what the policy
            would say now (DeepSeek-AI 2025, arXiv 2512.02556; TRL's `use_bias_correction_kl`).

    Raises:
        RewardError: a setting or shape that does not fit, or a policy that a setting needs and was not given.
    """

    reference: str = "old"
    low: float | None = None
    high: float | None = None
    most: float | None = None
    cap: float | None = None
    level: str = "token"
    mean: str = "tokens"
    length: float = 1.0
    kl: float = 0.0
    kl_weighted: bool = False

    def __post_init__(self) -> None:
        check_choice("reference", self.reference, ("self", "old", "one"), RewardError)
        check_choice("level", self.level, ("token", "sequence", "product"), RewardError)
        check_choice("mean", self.mean, ("tokens", "sequences", "sums"), RewardError)
        bounds = {name: getattr(self, name) for name in ("low", "high", "most", "cap")}
        for name, value in {**bounds, "length": self.length, "kl": self.kl}.items():
            if value is not None and not value >= 0:
                raise RewardError(f"{name}={value!r} must be a number of zero or more")
        if self.reference != "old" and any(value is not None for value in bounds.values()):
            raise RewardError("bounds are those of a ratio to the old policy: they need reference='old'")
        if self.cap is not None and any(bounds[name] is not None for name in ("low", "high", "most")):
            raise RewardError("a cap takes the place of low, high and most: give one or the others")
        if self.kl_weighted and (self.reference != "old" or self.level != "token"):
            raise RewardError("kl_weighted needs a ratio of tokens to the old policy: reference='old', level='token'")
        if self.most is not None and self.most <= 1 + (self.high or 0.0):
            raise RewardError(f"most={self.most:g} must be larger than the bound above, {1 + (self.high or 0.0):g}")
        if self.level == "product" and self.mean != "sums":
            raise RewardError("a ratio for a whole sequence (level='product') needs mean='sums'")
        if self.length == 0 or (self.length != 1 and self.mean != "sums"):
            raise RewardError(f"length={self.length:g} divides sums: it needs mean='sums', and may not be 0")

    @classmethod
    def sft(cls, **more: Any) -> PolicyGradient:
        """The likelihood of demonstrations; their advantages are 1."""
        return cls(**{"reference": "self", **more})

    @classmethod
    def dft(cls, **more: Any) -> PolicyGradient:
        """Demonstrations by the gradient of their probability, so that what is unlikely pulls less."""
        return cls(**{"reference": "one", **more})

    @classmethod
    def reinforce(cls, **more: Any) -> PolicyGradient:
        """The likelihood ratio on what the policy has just said."""
        return cls(**{"reference": "self", "mean": "sums", **more})

    @classmethod
    def rloo(cls, low: float = 0.2, high: float = 0.2, **more: Any) -> PolicyGradient:
        """One ratio for a whole answer; for `group_advantages(..., leave_one_out=True)`."""
        return cls(**{"low": low, "high": high, "level": "product", "mean": "sums", **more})

    @classmethod
    def ppo(cls, low: float = 0.2, high: float = 0.2, **more: Any) -> PolicyGradient:
        """Proximal policy optimisation; for `generalized_advantages`."""
        return cls(**{"low": low, "high": high, **more})

    @classmethod
    def grpo(cls, low: float = 0.2, high: float = 0.2, **more: Any) -> PolicyGradient:
        """Group relative policy optimisation; for `group_advantages`."""
        return cls(**{"low": low, "high": high, "mean": "sequences", **more})

    @classmethod
    def dr_grpo(cls, length: float, low: float = 0.2, high: float = 0.2, **more: Any) -> PolicyGradient:
        """GRPO without its preference for short right and long wrong answers; for `group_advantages(..., scale="none")`."""
        return cls(**{"low": low, "high": high, "mean": "sums", "length": length, **more})

    @classmethod
    def dapo(cls, low: float = 0.2, high: float = 0.28, **more: Any) -> PolicyGradient:
        """GRPO with every token counted alike and a wider bound above."""
        return cls(**{"low": low, "high": high, **more})

    @classmethod
    def gspo(cls, low: float = 3e-4, high: float = 4e-4, **more: Any) -> PolicyGradient:
        """GRPO with one ratio for a sequence."""
        return cls(**{"low": low, "high": high, "level": "sequence", "mean": "sequences", **more})

    @classmethod
    def cispo(cls, cap: float = 5.0, **more: Any) -> PolicyGradient:
        """Ratios are capped where the others stop."""
        return cls(**{"cap": cap, **more})

    def __call__(self, log_probs: Tensor, advantages: Any = 1.0, **given: Any) -> Tensor:
        """The reward of each log-probability, of their shape; takes what `loss` takes."""
        return log_probs.detach() * self._parts(log_probs.detach(), advantages, **given)[0]

    def loss(self, log_probs: Tensor, advantages: Any = 1.0, **given: Any) -> Tensor:
        """A scalar whose gradient at the log-probabilities is minus their signal.

        Args:
            log_probs: of what was said, [n, t] or [n].
            advantages: for each sequence [n], for each token [n, t], or one number.
            old: log-probabilities of the policy that spoke; without them it was this very one.
            reference: of the policy that `kl` holds on to.
            mask: of the same shape, true where there is a token of the answer.
            weights: of sequences [n], such as `HybridPostTraining` gives; 0 leaves a sequence out.
        """
        signal, value = self._parts(log_probs.detach(), advantages, **given)
        return (
            value - torch.where(signal != 0, signal * (log_probs - log_probs.detach()), 0.0).sum()
        )  # adds 0, and a gradient

    def _parts(
        self, log_p: Tensor, advantages: Any, *, old: Tensor | None = None, reference: Tensor | None = None,
        mask: Tensor | None = None, weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The signals, and the value of the loss."""
        if log_p.dim() not in (1, 2) or not log_p.is_floating_point():
            raise RewardError(f"log-probabilities must be floats [n, t] or [n]; got {log_p.dtype} {list(log_p.shape)}")
        if self.kl and reference is None:
            raise RewardError(f"kl={self.kl:g} needs the log-probabilities of a policy to hold on to: reference=")
        inside = torch.ones_like(log_p, dtype=torch.bool) if mask is None else _fitting(mask, log_p, "mask") != 0
        advantages = _fitting(advantages, log_p, "advantages")
        ratio, stable = self._ratio(log_p, old, inside, advantages)
        signal = stable * ratio * advantages
        if self.reference == "old" and self.cap is None:
            kept = ratio.clamp(1 - _or_infinite(self.low), 1 + _or_infinite(self.high))
            value = torch.minimum(ratio.clamp_max(_or_infinite(self.most)) * advantages, kept * advantages)
            value = (
                value / inside.sum(-1, keepdim=True).clamp_min(1)
                if self.level == "product" and log_p.dim() == 2
                else value
            )
        else:
            value = signal * log_p
        if self.kl and reference is not None:
            gap = _fitting(reference, log_p, "reference") - log_p
            apart, slope = gap.exp() - gap - 1, 1 - gap.exp()
            if self.kl_weighted:
                weight = torch.ones_like(log_p) if old is None else (log_p - _fitting(old, log_p, "old")).exp()
                apart, slope = weight * apart, weight * (slope + apart)
            signal, value = signal - self.kl * slope, value - self.kl * apart
        share = self._share(inside, log_p)
        if weights is not None:
            share = share * _fitting(weights, log_p, "weights")
        # What stands in padding may be anything, NaN too.
        return torch.where(inside, signal * share, 0.0), -torch.where(inside, value * share, 0.0).sum()

    def _ratio(self, log_p: Tensor, old: Tensor | None, inside: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """`exp(log_p - reference)`, and 1 or 0 for what is stable."""
        if self.reference != "old":
            if old is not None:
                raise RewardError(f"reference={self.reference!r} makes no use of the old policy's log-probabilities")
            return torch.ones_like(log_p) if self.reference == "self" else log_p.exp(), torch.ones_like(log_p)
        gap = torch.zeros_like(log_p) if old is None else torch.where(inside, log_p - _fitting(old, log_p, "old"), 0.0)
        if self.level != "token" and log_p.dim() == 2:
            whole = gap.sum(1, keepdim=True)
            whole = whole / inside.sum(1, keepdim=True).clamp_min(1) if self.level == "sequence" else whole
            gap = whole.expand_as(log_p)
        ratio = gap.exp()
        if self.cap is not None:
            return ratio.clamp_max(self.cap), torch.ones_like(log_p)
        up = (advantages > 0) & (ratio > 1 + _or_infinite(self.high))
        down = (advantages < 0) & ((ratio < 1 - _or_infinite(self.low)) | (ratio > _or_infinite(self.most)))
        return ratio, (~(up | down)).to(log_p)

    def _share(self, inside: Tensor, log_p: Tensor) -> Tensor:
        """How much each token counts."""
        if self.mean == "tokens":
            return torch.ones_like(log_p) / inside.sum().clamp_min(1)
        tokens = (
            inside.sum(1, keepdim=True).clamp_min(1) if self.mean == "sequences" and log_p.dim() == 2 else self.length
        )
        return torch.ones_like(log_p) / (tokens * max(len(log_p), 1))


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _fitting(values: Any, log_p: Tensor, what: str) -> Tensor:
    """Numbers for each token, each sequence or all, as one for each token."""
    values = torch.as_tensor(values).detach().to(log_p)
    if values.dim() == 1 and log_p.dim() == 2 and len(values) == len(log_p):
        values = values.unsqueeze(1)
    elif values.dim() and values.shape not in (log_p.shape, torch.Size([len(log_p), 1])[: log_p.dim()]):
        raise RewardError(
            f"{what} of shape {list(values.shape)} do not fit log-probabilities {list(log_p.shape)}; give one for each of them, "
            "for each sequence, or one number"
        )
    return values.expand_as(log_p)
