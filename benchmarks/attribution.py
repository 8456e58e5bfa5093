"""Cost of an explanation over one gradient x input pass: `python -m benchmarks.attribution --json out.json`.

Every side explains the same batch of the same model with random weights, in turn in one process: the median of all rounds,
after one that prepares. Memory is the peak of the resident set over what is there before, each side in a process of its
own (`--memory`). Gradient x input is autograd with the input alone requiring a gradient. Ratios are over the first side;
`--sides five:autograd,five:epsilon` explains five classes, of one forward pass each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lfpgraph.models_zoo.cnn import vgg16
from torch import Tensor, nn

import lfpgraph
from benchmarks.resident import peak_growth

Run = Callable[[], Any]
FIVE = "five:"
COMPOSITES = (
    "gradient-x-input",
    "lrp-0",
    "epsilon",
    "epsilon-plus",
    "epsilon-alpha2-beta1",
    "epsilon-gamma-box",
    "attnlrp",
    "deeplift",
)


def _resnet50() -> tuple[nn.Module, Tensor]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000)), torch.randn(4, 3, 224, 224)


def _vit_s() -> tuple[nn.Module, Tensor]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return ViTForImageClassification(config), torch.randn(4, 3, 224, 224)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "vgg16": lambda: (vgg16(), torch.randn(2, 3, 224, 224)),
    "resnet50": _resnet50,
    "vit-s16": _vit_s,
}


def _logits(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def _gradient(model: nn.Module, x: Tensor) -> Run:
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_logits(model(leaf))[:, 3].sum(), leaf)
        return gradient * x

    return run


def _ours(model: nn.Module, x: Tensor, composite: str) -> Run:
    return lambda: lfpgraph.attribute(model, x, 3, composite)


def _five(model: nn.Module, x: Tensor, composite: str) -> Run:
    """Relevance of five classes, from one forward pass; by gradients where the name is autograd."""
    if composite != "autograd":
        return lambda: lfpgraph.attribute(model, x, lfpgraph.Targets(range(5)), composite)
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        sums = _logits(model(leaf))[:, :5].sum(0)
        return torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] * x for s in sums])

    return run


def _zennit(model: nn.Module, x: Tensor) -> Run:
    """zennit's EpsilonPlus with batch norms merged where they follow a layer; entered once."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.support.peers import peer

    composites, canonizers = peer("zennit.composites"), peer("zennit.canonizers")
    entered = composites.EpsilonPlus(canonizers=[canonizers.SequentialMergeBatchNorm()]).context(model).__enter__()

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        (relevance,) = torch.autograd.grad(_logits(entered(leaf))[:, 3].sum(), leaf)
        return relevance

    return run


def _autolrp(model: nn.Module, x: Tensor) -> Run:
    """autoLRP's `composite`: its tensors note what they went through."""
    import autolrp

    def run() -> Tensor:
        leaf = autolrp.tensor(x)
        _logits(model(leaf))[:, 3].sum().lrp(config=autolrp.LRPConfig.composite())  # type: ignore[attr-defined]
        relevance: Tensor = leaf.relevance
        return relevance

    return run


def _lxt(model: nn.Module, x: Tensor) -> Run:
    """LXT's efficient AttnLRP: gradient x input of a model whose classes it has patched, here for the time of a run."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from transformers.activations import GELUActivation
    from transformers.models.vit import modeling_vit

    from tests.support.peers import peer

    patches = peer("lxt.efficient.patches")
    attention = patches.wrap_attention_forward(modeling_vit.eager_attention_forward)
    gradient = _gradient(model, x)

    def run() -> Tensor:
        GELUActivation.original_forward = GELUActivation.forward
        with (
            mock.patch.object(modeling_vit, "eager_attention_forward", attention),
            mock.patch.object(nn.LayerNorm, "forward", patches.layer_norm_forward),
            mock.patch.object(GELUActivation, "forward", patches.non_linear_forward),
        ):
            relevance: Tensor = gradient()
        return relevance

    return run


def side(name: str, model: nn.Module, x: Tensor) -> Run:
    """One way to explain; of five classes where the name begins with `FIVE`."""
    if name == "autograd":
        return _gradient(model, x)
    if name.startswith(FIVE):
        return _five(model, x, name.removeprefix(FIVE))
    peers = {"zennit": _zennit, "autolrp": _autolrp, "lxt": _lxt}
    return peers[name](model, x) if name in peers else _ours(model, x, name)


def timed(model_name: str, names: list[str], rounds: int, busy: bool = False) -> dict[str, list[float]]:
    """Seconds of each round, the sides in turn; of the processor where others use the machine (`busy`)."""
    clock = time.process_time if busy else time.perf_counter
    torch.manual_seed(0)
    model, x = MODELS[model_name]()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    runs: dict[str, Run] = {}
    for name in names:
        twin = MODELS[model_name]()[0]
        twin.load_state_dict(state)
        runs[name] = side(name, twin.eval(), x)
        runs[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def peak(model_name: str, name: str) -> float:
    """MiB that an explanation needs beyond model, batch and what is kept between calls."""
    torch.manual_seed(0)
    model, x = MODELS[model_name]()
    run = side(name, model.eval(), x)
    for _ in range(2):
        run()
    return peak_growth(run) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--sides", default="autograd," + ",".join(COMPOSITES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", action="store_true", help="processor time, where others use the machine (one thread)")
    parser.add_argument("--memory", action="store_true", help="measure memory instead, a process for each side")
    parser.add_argument("--one", help="one side's memory, in this process")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        print(peak(options.models[0], options.one))
        return
    results = {}
    for model in options.models:
        names = options.sides.split(",")
        if options.memory:
            command = [sys.executable, "-m", "benchmarks.attribution", model, "--one"]
            found = {
                n: float(subprocess.run([*command, n], capture_output=True, check=True, text=True).stdout)
                for n in names
            }
            unit = "MiB"
        else:
            seconds = timed(model, names, options.rounds, options.busy)
            found = {n: statistics.median(s) for n, s in seconds.items()}
            unit = "s"
        results[model] = {n: {unit: v, "ratio": v / found[names[0]]} for n, v in found.items()}
        for name, row in results[model].items():
            print(f"{model:10s} {name:22s} {row[unit]:9.3f} {unit}  {row['ratio']:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
