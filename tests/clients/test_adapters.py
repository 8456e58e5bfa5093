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


FEW: dict[str, Any] = {"nr_samples": 2}
MEAN: dict[str, Any] = {"perturb_baseline": "mean"}
# All that Quantus lists, by their names there, at sizes that suit images of 8 x 8 and three classes; but for SmoothMPRT, which
# explains by Quantus's own methods, whatever it is given.
METRICS: dict[str, dict[str, Any]] = {
    "AUC": {},
    "AttributionLocalisation": {},
    "AvgSensitivity": FEW,
    "Completeness": {},
    "Complexity": {},
    "Consistency": {},
    "Continuity": {"nr_steps": 4},
    "EffectiveComplexity": {},
    "EfficientMPRT": {},
    "FaithfulnessCorrelation": {"nr_runs": 8, "subset_size": 8, **MEAN},
    "FaithfulnessEstimate": {"features_in_step": 8, **MEAN},
    "Focus": {"mosaic_shape": 8},
    "IROF": {},
    "Infidelity": {"perturb_patch_sizes": [4], "n_perturb_samples": 2},
    "InputInvariance": {},
    "LocalLipschitzEstimate": FEW,
    "MPRT": {},
    "MaxSensitivity": FEW,
    "Monotonicity": {"features_in_step": 8, **MEAN},
    "MonotonicityCorrelation": {"features_in_step": 8, "nr_samples": 2},
    "NonSensitivity": MEAN,
    "PixelFlipping": {"features_in_step": 8, **MEAN},
    "PointingGame": {},
    "ROAD": {"percentages": [25, 50]},
    "RandomLogit": {"num_classes": 3},
    "RegionPerturbation": {"patch_size": 2, "regions_evaluation": 4, **MEAN},
    "RelativeInputStability": FEW,
    "RelativeOutputStability": FEW,
    "RelativeRepresentationStability": FEW,
    "RelevanceMassAccuracy": {},
    "RelevanceRankAccuracy": {},
    "Selectivity": {"patch_size": 4, **MEAN},
    "SensitivityN": {"features_in_step": 8, **MEAN},
    "Sparseness": {},
    "Sufficiency": {},
    "TopKIntersection": {"k": 8},
}


@pytest.mark.client("Quantus", "`lfpgraph.adapters.quantus.explain`, {name}", "relevance")
@pytest.mark.parametrize("name", METRICS)
def test_quantus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric runs over relevance that it asks the adapter for itself."""
    quantus = peer("quantus")
    from lfpgraph.adapters.quantus import explain

    listed = {metric.__name__ for kind in quantus.AVAILABLE_METRICS.values() for metric in kind.values()}
    assert listed - {"SmoothMPRT"} == set(METRICS)
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # which Quantus 0.6 calls, and numpy 2.4 has no more
    x, y = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32), np.array([0, 1, 2, 1])
    asked: list[int] = []

    def ours(*args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        return explain(*args, **kwargs)

    inside = np.zeros((4, 1, 8, 8), bool)
    inside[..., 2:6, 2:6] = True
    metric = getattr(quantus, name)(**METRICS[name], disable_warnings=True, display_progressbar=False)
    given: dict[str, Any] = {"custom_batch": [(0, 0, 1, 1)] * 4} if name == "Focus" else {}
    scores = metric(
        model=_cnn(), x_batch=x, y_batch=y, a_batch=None, s_batch=inside, device="cpu", explain_func=ours,
        explain_func_kwargs={"composite": "epsilon"}, **given,
    )  # fmt: skip
    parts = list(scores.values()) if isinstance(scores, dict) else [scores]
    flat = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in parts])
    assert asked and flat.size and not np.isinf(flat).any()


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


@pytest.mark.client("inseq", "the same for a model with an encoder", "relevance")
def test_inseq_with_an_encoder() -> None:
    """For each generated token, the relevance of the source and of what was written before."""
    inseq = pytest.importorskip("inseq")
    from transformers import T5Config, T5ForConditionalGeneration

    import lfpgraph.adapters.inseq  # noqa: F401

    words = tokenizer()
    words.bos_token = "<|im_start|>"
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id, decoder_start_token_id=words.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    wrapped = inseq.load_model(model, "lfpgraph", tokenizer=words)
    out = wrapped.attribute(
        "the class", "is bound", attributed_fn="logit", composite="attnlrp", attribute_target=True, show_progress=False
    )
    (sequence,) = out.sequence_attributions
    source, target = (torch.tensor([[token.id for token in part]]) for part in (sequence.source, sequence.target))
    count = sequence.source_attributions.shape[1]
    assert count == sequence.target_attributions.shape[1] == target.shape[1] - sequence.attr_pos_start > 1
    for place in range(sequence.attr_pos_start, target.shape[1]):
        inputs = {"input_ids": source, "decoder_input_ids": target[:, :place], "use_cache": False}
        mine = lfpgraph.attribute(model, inputs, (-1, int(target[0, place])), "attnlrp")
        found = place - sequence.attr_pos_start
        for theirs, name in (
            (sequence.source_attributions, "input_ids"),
            (sequence.target_attributions, "decoder_input_ids"),
        ):
            own = mine[name][0]
            torch.testing.assert_close(theirs[: len(own), found], own, rtol=1e-3, atol=1e-4)


@pytest.mark.client("zennit", "`EpsilonPlus` and `EpsilonAlpha2Beta1` as `attribute`", "relevance")
@pytest.mark.parametrize(
    ("theirs", "ours"), [("EpsilonPlus", "epsilon-plus"), ("EpsilonAlpha2Beta1", "epsilon-alpha2-beta1")]
)
def test_zennit(theirs: str, ours: str) -> None:
    composites, model = peer("zennit.composites"), _cnn().double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.double).requires_grad_()
    with getattr(composites, theirs)().context(model) as changed:
        out = changed(x)
        chosen = nn.functional.one_hot(torch.tensor([2, 0]), 3) * out.detach()
        (expected,) = torch.autograd.grad(out, x, chosen)
    found = lfpgraph.attribute(model, x, [2, 0], ours)
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


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
