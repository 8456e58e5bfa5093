"""Which experiments there are, and how one is run and written down."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import TargetError
from ...writing import write_text
from .harness import Report, Settings

__all__ = ["EXPERIMENTS", "Experiment", "reproduce"]


@dataclass(frozen=True)
class Experiment:
    """A module of the package `experiments` with `run(settings) -> Report`."""

    module: str
    summary: str

    def run(self, settings: Settings) -> Report:
        """Train everything and return what was found."""
        module = importlib.import_module(f"..{self.module}", __package__)
        report: Report = module.run(replace(settings, experiment=self.name))
        return report

    @property
    def name(self) -> str:
        """As the command line has it: the last part of the module's path."""
        return self.module.rpartition(".")[2]


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("discrete.activations", "smooth ones, steps, few bits, binary and ternary weights: MLPs on digits"),
        Experiment("boundaries", "decision boundaries and weights on blobs, circles and swirls (LFP, figure 3)"),
        Experiment("architectures.captions", "a CNN and an LSTM describe digits in four words"),
        Experiment("convergence", "accuracy per step and per second: a CNN on digits"),
        Experiment(
            "transformers.deltanet", "a hybrid of gated DeltaNet and attention on Python's own standard library"
        ),
        Experiment("diffusion", "a diffusion model predicts the noise in digits"),
        Experiment("architectures.fields", "three planes of features tell which points are inside of a gyroid"),
        Experiment(
            "architectures.forecasting", "exponential smoothing with an LSTM forecasts generated seasonal series"
        ),
        Experiment("graphs", "GraphSAGE tells the community of a node of a generated graph"),
        Experiment(
            "architectures.hybrids", "convolution or attention, at full or half size, searched while it trains: digits"
        ),
        Experiment("transformers.language", "next-character loss of a small GPT-2 on Python's own standard library"),
        Experiment(
            "transformers.finetune",
            "the pretrained MiniLM learns from which library a docstring is: whole, and by LoRA",
        ),
        Experiment(
            "rewarding.further_rewards", "rewards of post-training, correlation, contrast and energy: an MLP on digits"
        ),
        Experiment(
            "rewarding.metric",
            "an MLP told right or wrong alone, beside zeroth-order training on as many passes: digits",
        ),
        Experiment(
            "discrete.policies", "weights as memory devices, few that move, layers that learn alone: an MLP on digits"
        ),
        Experiment("optimizers", "AdamW, SGD, Madam, Muon, adaptive clipping: an MLP on digits"),
        Experiment(
            "rewarding.nines",
            "rewarded by a program that knows nothing but the F1 score: an MLP tells nines from other digits",
        ),
        Experiment("pruning", "accuracy with weights taken away, with noise on them, with few bits: an MLP on digits"),
        Experiment("regression", "diabetes (and California housing, if scikit-learn has it cached): an MLP"),
        Experiment(
            "rewarding.rewards", "rewards for classes, and a bandit that is told right or wrong: digits, breast cancer"
        ),
        Experiment("discrete.routing", "a router that chooses experts by argmax: digits"),
        Experiment("rule", "which floor and slope `lfp` has, chosen on parts of training sets: digits, characters"),
        Experiment("architectures.sequences", "a PV-RNN goes on with curves that it has seen one half of"),
        Experiment(
            "rewarding.spike_rewards", "LIF networks on digits: by spike counts, first spikes, rate-coded reward"
        ),
        Experiment("discrete.spiking", "LIF networks on digits: beta 0.3, 0.6, 0.9 and 5, 15, 25 steps"),
        Experiment("suggested", "rates that suggest_lr suggests beside the best of a grid: digits, characters"),
        Experiment("transformers.trainer", "models of three kinds under transformers.Trainer's default settings"),
        Experiment("architectures.unseen_images", "an MLP-Mixer and a GRU, on which nothing was chosen: digits"),
        Experiment("transformers.unseen_texts", "a language model of LSTMs, on which nothing was chosen"),
        Experiment("transfer", "half of the digits by backprop, then the other half by feedback"),
        Experiment("transformers.vit", "a ViT of transformers, random weights, on digits"),
    )
}


def reproduce(name: str, settings: Settings, folder: Path) -> Report:
    """Run an experiment and write `NAME.json` and `NAME.png` into a folder.

    Raises:
        TargetError: no such experiment.
    """
    if name not in EXPERIMENTS:
        raise TargetError(f"no experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    report = EXPERIMENTS[name].run(settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(report.to_json(), indent=1))
    report.plot(folder / f"{name}.png")
    return report
