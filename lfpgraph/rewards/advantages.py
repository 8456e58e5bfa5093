"""What `PolicyGradient` is told besides log-probabilities: advantages, and how demonstrations and own answers are mixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RewardError, check_choice
from .checks import numbers

__all__ = ["SASR", "HybridPostTraining", "generalized_advantages", "group_advantages"]


def group_advantages(
    scores: Any, groups: Any, *, scale: str = "group", leave_one_out: bool = False, eps: float = 1e-4
) -> Tensor:
    """How much better each answer was than the other answers to the same question, [n].

    `(r - mean(r)) / (std(r) + eps)` over the answers to one question (GRPO: Shao et al. 2024, section 4.1.2).

    Args:
        scores: one for each answer, [n].
        groups: the question of each answer, [n], any numbers; or how many answers in a row are to one question.
        scale: "group"; "batch" divides by the spread of all scores; "none" does not divide (Dr. GRPO, RLOO).
        leave_one_out: the mean is that of the other answers alone (RLOO: Kool et al. 2019; Ahmadian et al. 2024, eq. 9).
        eps: added to the spread. An answer without a second one to its question has an advantage of 0.

    Raises:
        RewardError: shapes that do not fit.
    """
    check_choice("scale", scale, ("group", "batch", "none"), RewardError)
    scores = _floats(scores)
    place, count = _places(scores, groups)
    summed = scores.new_zeros(len(count)).index_add(0, place, scores)
    own, n = (summed / count)[place], count[place]
    advantages = torch.where(n > 1, (scores - own) * (n / (n - 1).clamp_min(1) if leave_one_out else 1), 0.0)
    if scale == "batch" and len(scores) > 1:
        return advantages / (scores.std() + eps)
    if scale == "group":
        squares = scores.new_zeros(len(count)).index_add(0, place, (scores - own) ** 2)
        return advantages / ((squares / (count - 1).clamp_min(1)).sqrt()[place] + eps)
    return advantages


def generalized_advantages(
    rewards: Tensor, values: Tensor, *, gamma: float = 1.0, decay: float = 0.95, mask: Tensor | None = None
) -> Tensor:
    """`A_t = d_t + gamma decay A_(t+1)` with `d_t = r_t + gamma V_(t+1) - V_t`, and nothing behind the end, [n, t].

    Source: generalized advantage estimation, Schulman et al. 2016 (arXiv 1506.02438), eq. 16; `decay` is its lambda.

    Args:
        rewards, values: of each token, [n, t].
        mask: true for tokens; what is behind the end of a sequence counts as 0.

    Raises:
        RewardError: shapes that do not fit.
    """
    if rewards.dim() != 2 or values.shape != rewards.shape or (mask is not None and mask.shape != rewards.shape):
        raise RewardError(
            f"rewards {list(rewards.shape)} and values {list(values.shape)}, and a mask, must be [n, t] alike"
        )
    inside = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask != 0
    rewards, values = (torch.where(inside, x.detach(), 0.0) for x in (rewards, values))
    advantages, behind, last = (
        torch.zeros_like(rewards),
        rewards.new_zeros(len(rewards)),
        rewards.new_zeros(len(rewards)),
    )
    for t in reversed(range(rewards.shape[1])):
        last = rewards[:, t] + gamma * behind - values[:, t] + gamma * decay * last
        advantages[:, t], behind = last, values[:, t]
    return torch.where(inside, advantages, 0.0)


class HybridPostTraining:
    """Demonstrations for questions that the policy cannot answer, its own answers for the others.

    `L = alpha L_RL + beta L_SFT` for each question, with P the mean score of its answers: alpha = 1 and beta = 0 where P is
    above the gate, else alpha = 0 and beta = 1. Source: HPT, Lv et al. 2025 (arXiv 2509.04419), section 4.

        of_answers, of_questions = hybrid.weights(scores, questions)
        own = rl.loss(l, advantages, old=l_then, mask=mask, weights=of_answers)
        shown = sft.loss(l_shown, mask=mask_shown, weights=of_questions)
        (own + shown).backward()

    Args:
        gate: 0 there: a question is left to demonstrations only as long as no answer was right.
        rl, sft: the weights alpha and beta have where they are not 0.
    """

    def __init__(self, gate: float = 0.0, rl: float = 1.0, sft: float = 1.0) -> None:
        self.gate, self.rl, self.sft = gate, rl, sft

    def weights(self, scores: Any, groups: Any) -> tuple[Tensor, Tensor]:
        """Weights of answers [n], and of questions [q] in the order of their numbers; takes what `group_advantages` takes."""
        scores = _floats(scores)
        place, count = _places(scores, groups)
        able = scores.new_zeros(len(count)).index_add(0, place, scores) / count > self.gate
        return self.rl * able[place].to(scores), self.sft * (~able).to(scores)


class SASR:
    """Draws whether the next step is on demonstrations ("sft") or on own answers ("rl").

    `p = g / (g + gamma g_0)` is the chance of the former, with g the norm of the gradient at the last step on demonstrations and
    g_0 that at the end of a warm-up on demonstrations alone: the more is left to learn of them, the more often they come.
    Source: after SASR, Chen et al. 2025 (arXiv 2505.13026). Its abstract, which speaks of gradient norms and of a warm-up, was
    at hand; the formula is from memory and was not compared with the paper's.

        if sasr.next() == "sft":
            sft.loss(l_shown).backward()
            sasr.note(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        else:
            grpo.loss(l, advantages, old=l_then).backward()

    Args:
        warm_up: steps on demonstrations at the start, one at least. gamma: how soon own answers take over.
        seed: of the draws.
    """

    def __init__(self, warm_up: int, gamma: float = 1.0, seed: int = 0) -> None:
        if warm_up < 1 or not gamma > 0:
            raise RewardError(f"SASR needs a warm-up of one step at least, and gamma above 0; got {warm_up}, {gamma:g}")
        self.warm_up, self.gamma, self.noted = warm_up, gamma, 0
        self.at_start = self.now = 0.0
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def share(self) -> float:
        """The chance that the next step is on demonstrations."""
        if self.noted < self.warm_up:
            return 1.0
        whole = self.now + self.gamma * self.at_start
        return self.now / whole if whole else 0.0

    def next(self) -> str:
        """ "sft" or "rl"; one draw, and none in the warm-up."""
        share = self.share
        return "sft" if share == 1 or float(torch.rand((), generator=self._generator)) < share else "rl"

    def note(self, norm: float) -> None:
        """The norm of the gradient that a step on demonstrations had."""
        self.now, self.noted = float(norm), self.noted + 1
        if self.noted <= self.warm_up:
            self.at_start = self.now

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"noted": self.noted, "at_start": self.at_start, "now": self.now, "random": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.noted, self.at_start, self.now = state["noted"], state["at_start"], state["now"]
        self._generator.set_state(state["random"])


def _floats(scores: Any) -> Tensor:
    scores = numbers(scores, "scores").detach()
    scores = scores if scores.is_floating_point() else scores.to(torch.get_default_dtype())
    if scores.dim() != 1:
        raise RewardError(f"scores must be one for each answer, [n]; got {list(scores.shape)}")
    return scores


def _places(scores: Tensor, groups: Any) -> tuple[Tensor, Tensor]:
    """The number of each answer's question among the questions, and how many answers each question has."""
    if isinstance(groups, int):
        if groups < 1 or len(scores) % groups:
            raise RewardError(f"{len(scores)} scores are not answers to questions of {groups} answers each")
        groups = torch.arange(len(scores), device=scores.device) // groups
    groups = numbers(groups, "groups").to(scores.device)
    if groups.shape != scores.shape:
        raise RewardError(
            f"groups of shape {list(groups.shape)} do not fit {list(scores.shape)} scores; give the question of each answer, or "
            "a whole number of answers to each"
        )
    _, place, count = groups.unique(return_inverse=True, return_counts=True)
    return place, count.to(scores)
