"""Our relevance in the tools of the field, each with its real package (`lfpgraph.adapters`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from ..support.peers import peer
from .support import gpt2, llama, tokenizer


def _cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        return self.first(a) * scale + self.second(b)


@pytest.mark.client("captum", "`lfpgraph.adapters.captum.Relevance`", "relevance")
def test_captum() -> None:
    """Its own methods agree where they are ours by another name, and its metrics take ours."""
    pytest.importorskip("captum")
    from captum.attr import Attribution, InputXGradient, IntegratedGradients
    from captum.metrics import sensitivity_max

    from lfpgraph.adapters.captum import Relevance

    model, x = _cnn(), torch.randn(3, 1, 8, 8)
    ours = Relevance(model, "gradient-x-input")
    assert isinstance(ours, Attribution)
    torch.testing.assert_close(ours.attribute(x, target=[0, 2, 1]), InputXGradient(model).attribute(x, [0, 2, 1]))
    path = IntegratedGradients(model).attribute(x, 0.5 * x, 1, n_steps=16, method="riemann_middle")
    torch.testing.assert_close(Relevance(model, "gradient-x-input", steps=16).attribute(x, 1, baselines=0.5 * x), path)
    two, inputs = _Two().eval(), (torch.randn(2, 4), torch.randn(2, 5))
    scale = torch.full((2, 1), 2.0)
    theirs = InputXGradient(two).attribute(inputs, 1, additional_forward_args=scale)
    found = Relevance(two, "gradient-x-input").attribute(inputs, 1, additional_forward_args=scale)
    assert isinstance(found, tuple) and len(found) == 2
    for a, b in zip(found, theirs):
        torch.testing.assert_close(a, b)
    assert sensitivity_max(Relevance(model).attribute, x, target=1, n_perturb_samples=2).isfinite().all()


METRICS: dict[str, dict[str, Any]] = {
    "FaithfulnessCorrelation": {"nr_runs": 8, "subset_size": 8, "perturb_baseline": "mean"},
    "PixelFlipping": {"features_in_step": 8, "perturb_baseline": "mean"},
    "RegionPerturbation": {"patch_size": 2, "regions_evaluation": 4},
    "MaxSensitivity": {"nr_samples": 3},
    "LocalLipschitzEstimate": {"nr_samples": 3},
    "Sparseness": {},
    "Complexity": {},
    "EffectiveComplexity": {},
    "Completeness": {},
    "RandomLogit": {"num_classes": 3},
    "MPRT": {},
}


@pytest.mark.client("Quantus", "`lfpgraph.adapters.quantus.explain`, {name}", "relevance")
@pytest.mark.parametrize("name", METRICS)
def test_quantus(name: str) -> None:
    quantus = peer("quantus")
    from lfpgraph.adapters.quantus import explain

    x, y = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32), np.array([0, 1, 2, 1])
    metric = getattr(quantus, name)(**METRICS[name], disable_warnings=True, display_progressbar=False)
    scores = metric(
        model=_cnn(), x_batch=x, y_batch=y, a_batch=None, device="cpu", explain_func=explain,
        explain_func_kwargs={"composite": "epsilon"},
    )  # fmt: skip
    flat = np.concatenate([np.ravel(v) for v in (scores.values() if isinstance(scores, dict) else scores)])
    assert flat.size and np.isfinite(flat.astype(float)).all()


@pytest.mark.client("inseq", '`inseq.load_model(model, "lfpgraph")`', "relevance")
def test_inseq() -> None:
    """For each generated token, the relevance that `attribute` gives for its logit."""
    inseq = pytest.importorskip("inseq")
    import lfpgraph.adapters.inseq  # noqa: F401  (the method is known from here on)

    model, words = llama().eval(), tokenizer()
    words.bos_token, model.config.bos_token_id = "<|im_start|>", words.convert_tokens_to_ids("<|im_start|>")
    wrapped = inseq.load_model(model, "lfpgraph", tokenizer=words)
    text = "the class statement"
    out = wrapped.attribute(
        text, text + " is bound", attributed_fn="logit", composite="attnlrp", show_progress=False,
        skip_special_tokens=True,
    )  # fmt: skip
    (sequence,) = out.sequence_attributions
    ids = torch.tensor([[token.id for token in sequence.target]])
    first = sequence.attr_pos_start
    assert sequence.target_attributions.shape[1] == ids.shape[1] - first > 1
    for place in range(first, ids.shape[1]):
        inputs = {"input_ids": ids[:, :place], "use_cache": False}
        mine = lfpgraph.attribute(model, inputs, (-1, int(ids[0, place])), "attnlrp")["input_ids"][0]
        torch.testing.assert_close(sequence.target_attributions[:place, place - first], mine, rtol=1e-3, atol=1e-4)


@pytest.mark.client("transformer-lens", "`record=` the modules behind its hook points", "relevance")
def test_transformer_lens() -> None:
    lens = pytest.importorskip("transformer_lens")
    inner = gpt2().eval()
    model = lens.TransformerBridge.boot_transformers("gpt2", hf_model=inner, tokenizer=tokenizer(), device="cpu")
    ids, kept = torch.randint(50, (1, 6)), {}
    model.add_hook("blocks.1.hook_in", lambda x, hook: kept.setdefault("x", x).retain_grad())
    model(ids)[0, -1, 3].backward()
    model.reset_hooks()
    inputs, place = {"input_ids": ids, "use_cache": False}, "transformer.h.0"  # what comes out of it
    found = lfpgraph.attribute(model.original_model, inputs, (-1, 3), "gradient-x-input", record=place)
    torch.testing.assert_close(found.nodes[place], kept["x"] * kept["x"].grad, rtol=1e-3, atol=1e-6)


@pytest.mark.client("nnsight", "`record=` the places that it saves", "relevance")
def test_nnsight() -> None:
    nnsight = pytest.importorskip("nnsight")
    inner, x = _cnn(), torch.randn(2, 1, 8, 8)
    model = nnsight.NNsight(inner)
    with model.trace(x):
        hidden = model.get("1").output.save() if hasattr(model, "get") else model[1].output.save()
    found = lfpgraph.attribute(inner, x, 1, "gradient-x-input", record="1")
    assert found.nodes["1"].shape == hidden.shape
    whole = inner[3].weight[1].view(1, 4, 8, 8) * hidden
    torch.testing.assert_close(found.nodes["1"], whole, rtol=1e-4, atol=1e-6)
