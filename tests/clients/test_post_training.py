"""`rewards.PolicyGradient` beside the losses that TRL's trainers compute, on what those trainers have drawn themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfpgraph import rewards
from lfpgraph.rewards import PolicyGradient

from . import trl_runs
from .support import gpt2

LOSSES: dict[str, tuple[PolicyGradient, dict[str, Any]]] = {
    "grpo": (PolicyGradient.grpo(kl=0.05, kl_weighted=True), {"loss_type": "grpo", "beta": 0.05}),
    "grpo, plain kl": (PolicyGradient.grpo(kl=0.05), {"beta": 0.05, "use_bias_correction_kl": False}),
    "grpo, three bounds": (PolicyGradient.grpo(0.1, 0.3, most=1.5), {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 1.5}),
    "dr_grpo": (PolicyGradient.dr_grpo(12), {"loss_type": "dr_grpo"}),
    "bnpo": (PolicyGradient.ppo(), {"loss_type": "bnpo"}),
    "dapo": (PolicyGradient.dapo(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "cispo": (PolicyGradient.cispo(1.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    "gspo": (PolicyGradient.gspo(0.03, 0.04), {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04}),
    "rloo": (PolicyGradient.rloo(), {}),
}  # fmt: skip


@pytest.mark.client("trl", "losses of GRPO and RLOO, equal to `rewards.PolicyGradient`")
@pytest.mark.parametrize("name", LOSSES)
def test_is_trls_loss(name: str, tmp_path: Path) -> None:
    """Value and gradient at the log-probabilities, with a policy that has moved since it spoke."""
    policy, options = LOSSES[name]
    if "loss_type" not in options and name != "rloo":
        options = {"loss_type": "grpo", **options}
    gpt2().save_pretrained(tmp_path / "model")
    model = gpt2().from_pretrained(tmp_path / "model")
    trainer, _ = trl_runs.make("RLOO" if name == "rloo" else "GRPO", model, tmp_path, **{"beta": 0.0, **options})
    theirs, log_probs_of = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
    compared = []

    def compare(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        seen: list[Tensor] = []

        def watch(*args: Any, **kwargs: Any) -> Any:
            found = log_probs_of(*args, **kwargs)
            seen.append(found[0])
            return found

        generator = torch.Generator().manual_seed(1)
        mask = inputs["completion_mask"]
        shape = mask.shape
        with torch.no_grad():
            now, *_ = log_probs_of(
                model, torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                torch.cat([inputs["prompt_mask"], mask], 1), shape[1],
            )  # fmt: skip
        old = now + (0.05 if name == "rloo" else 0.3) * torch.randn(shape, generator=generator)
        held = now + 0.3 * torch.randn(shape, generator=generator)
        inputs = {**inputs, "old_per_token_logps": old, "ref_per_token_logps": held, "old_logps": (old * mask).sum(1)}
        trainer._get_per_token_logps_and_entropies = watch
        loss = theirs(model, inputs)
        (log_p,) = seen
        how: dict[str, Any] = {"old": old, "mask": mask, **({"reference": held} if policy.kl else {})}
        own = policy.loss(log_p, inputs["advantages"], **how)
        torch.testing.assert_close(own, loss, rtol=1e-4, atol=1e-6)
        (a,), (b,) = (torch.autograd.grad(x, log_p, retain_graph=True) for x in (own, loss))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
        scores = [s for kept in trainer._logs["rewards"].values() for s in kept][-len(log_p) :]
        mine = rewards.group_advantages(
            scores, 4, scale="none" if name == "rloo" else "group", leave_one_out=name == "rloo"
        )
        torch.testing.assert_close(mine.sort()[0], inputs["advantages"].sort()[0], rtol=1e-4, atol=1e-5)
        compared.append(bool(a.any()))
        return loss

    trainer._compute_loss = compare
    trainer.train()
    assert compared and all(compared)


@pytest.mark.client("trl", "losses of SFT, equal to `rewards.PolicyGradient`")
@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_is_trls_loss_of_demonstrations(kind: str, tmp_path: Path) -> None:
    """Value and gradient of the weights; labels of -100 are no part of either."""
    model = gpt2(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    trainer, _ = trl_runs.make("SFT", model, tmp_path, loss_type=kind)
    theirs, compared = trainer.compute_loss, []
    policy = PolicyGradient.sft() if kind == "nll" else PolicyGradient.dft()

    def compare(model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"].clone()
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
        found = theirs(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        mask, said = labels[:, 1:] != -100, labels[:, 1:].clamp_min(0)
        own = policy.loss(rewards.log_probs_of(logits[:, :-1], said), mask=mask)
        own = own * mask.sum() / kwargs["num_items_in_batch"]  # which counts the first token of each row, too
        torch.testing.assert_close(own, loss, rtol=1e-5, atol=1e-7)
        weights = [p for p in model.parameters() if p.requires_grad]
        for a, b in zip(torch.autograd.grad(own, weights), torch.autograd.grad(loss, weights, retain_graph=True)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
        compared.append(bool(mask.all()))
        return found

    trainer.compute_loss = compare
    trainer.train()
    assert compared and not all(compared)
