"""What each pass over the static graphs is worth: `python -m benchmarks.passes`, or with `--case MLP "LSTM, 40 steps"`.

For each model, one wrapped copy has all passes and each other copy lacks one. The copies take turns in one process, and a
figure is the median, over the rounds, of the time without the pass over the time with all of them: 1.10 says that a step
would take 10 % longer. The first row leaves nothing out: its distance from 1.00 shows how exact the others are. Times are
processor time of one thread, so that other work on the machine disturbs them little. What inductor is worth stands in the
table of step times (`benchmarks.step`): it takes the place of all these.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.models import MODELS, Case
from benchmarks.sides import SIDES, Side

Without = Callable[[], AbstractContextManager[object]]  # entered while the program is made, and while it runs


def _replaced(name: str, by: object) -> Without:
    return lambda: patch(f"lfpgraph.{name}", by)


PASSES: dict[str, Without] = {
    "none: all passes once more": nullcontext,
    "products of all time steps joined (`join_products`)": _replaced(
        "engine.program.join_products", lambda graph, **_: 0
    ),
    "pairs of operations as one (`fuse_pairs`)": _replaced("engine.program.fuse_pairs", lambda graph: None),
    "formulas in blocks of the cache (`kernels`)": _replaced("kernels._BLOCK", 1 << 62),
    "in place (`write_in_place`)": _replaced("engine.program.write_in_place", lambda graph: 0),
    "statistics of batch norms in place (`write_statistics`)": _replaced("engine.program._buffers", lambda graph: []),
    "small signals scaled together (`join_scalings`)": _replaced("engine.program.join_scalings", lambda graph: None),
    "quick bindings (`quick_module`)": _replaced("engine.program.quick_module", lambda module, **_: module),
    "weights' signals scaled at once (`_finish_early`)": _replaced("engine.program._finish_early", lambda *args: None),
    "transposes and reshapes merged (`_shorten`)": _replaced("passes.functional._shorten", lambda node: None),
}


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(32, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0].mean(1))
        return out


def _gpt2(batch: int, length: int, **config: int) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(use_cache=False, **config))
    ids = torch.randint(model.config.vocab_size, (batch, length))
    return Case(model, {"input_ids": ids}, ids)


def _wide() -> Case:
    model = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))
    return Case(model, torch.randn(16, 512), torch.randint(10, (16,)))


def _cnn() -> Case:
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10))
    return Case(model, torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))


CASES: dict[str, Callable[[], Case]] = {
    "MLP": MODELS["mlp"],
    "MLP, 2048 wide, batch 16": _wide,
    "CNN, batch norm": _cnn,
    "ResNet-18": MODELS["resnet18"],
    "ViT, digits": MODELS["digits-vit"],
    "ViT-S/16": MODELS["vit-s16"],
    "GPT-2, 2 layers": lambda: _gpt2(4, 64, n_layer=2, n_embd=128, n_head=2, vocab_size=5000),
    "GPT-2, 1 layer, full size": lambda: _gpt2(2, 32, n_layer=1),
    "Spiking, 15 steps": MODELS["snn"],
    "LSTM, 40 steps": lambda: Case(_LSTM(), torch.randn(16, 40, 32), torch.randint(10, (16,))),
}


def _step(side: Side, without: Without) -> float:
    with without():
        start = time.process_time()
        side()
        return time.process_time() - start


def measure(case: Case, rounds: int) -> dict[str, float]:
    """For each pass, the time of forward and feedback without it over that with all passes."""
    variants: dict[str, Without] = {"all": nullcontext, **PASSES}
    sides: dict[str, Side] = {}
    for name, without in variants.items():
        with without():
            sides[name] = SIDES["lfp"](case)
            sides[name]()
            sides[name]()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(_step(side, variants[name]))
    return {name: statistics.median(a / b for a, b in zip(seconds[name], seconds["all"])) for name in PASSES}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each pass, a column for each model."""
    lines = ["| pass | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[name]:.2f}" for row in rows.values()) + " |" for name in PASSES]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in options.case:
        torch.manual_seed(0)
        rows[name] = measure(CASES[name](), options.rounds)
        print(table({name: rows[name]}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
