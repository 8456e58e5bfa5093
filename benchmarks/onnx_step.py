"""Time of a feedback step in onnxruntime against a backprop step of torch, eager: `python -m benchmarks.onnx_step`.

Both sides take turns in one run, with as many threads; figures are medians. A step is forward, loss, backward (or
feedback) and plain SGD on one batch of numpy arrays. `--profile` prints the operators that take onnxruntime's time.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from lfpgraph.models_zoo import digits, torch_models
from torch import Tensor, nn

from lfpgraph.onnx import OrtTrainer, export_training_step

WARM_UP = 3


def _mlp() -> nn.Module:
    sizes = [nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
    return nn.Sequential(*sizes)


def _vgg() -> nn.Module:
    model = torch_models.vgg(width=32)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=1000, intermediate_size=1024, **sizes, **off))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=1000, n_positions=64, n_embd=256, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=2, **off
        )
    )


def _draw(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (_mlp, _draw(256, 512)),
    "lenet": (torch_models.lenet, _draw(64, 1, 28, 28)),
    "digits_cnn": (digits.cnn, _draw(64, 1, 8, 8)),
    "vgg_norm": (_vgg, _draw(32, 3, 16, 16)),
    "digits_vit": (digits.vit, _draw(64, 1, 8, 8)),
    "bert": (_bert, lambda: torch.randint(1, 1000, (8, 64))),
    "gpt2": (_gpt2, lambda: torch.randint(1, 1000, (8, 64))),
    "lstm": (lambda: torch_models.LSTMClassifier(16, 64, 5), _draw(32, 20, 16)),
}


def _logits(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result.logits


def measure(name: str, rounds: int, threads: int, folder: Path, profile: bool) -> dict[str, Any]:
    """Median seconds of a step of each side, and their ratio's median."""
    torch.manual_seed(0)
    build, draw = MODELS[name]
    model, x = build(), draw()
    with torch.no_grad():
        shape = _logits(copy.deepcopy(model)(x)).shape
    y = torch.randint(0, shape[-1], shape[:-1])
    trainer = OrtTrainer(export_training_step(model, x[:2], folder / f"{name}.onnx", forward=False), threads=threads)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    arrays = x.numpy(), y.numpy()

    def backprop() -> None:
        inputs, target = (torch.from_numpy(a) for a in arrays)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(_logits(model(inputs)).flatten(0, -2), target.flatten()).backward()
        optimizer.step()

    def feedback() -> None:
        trainer.step(*arrays, lr=1e-7)

    seconds: dict[str, list[float]] = {"backprop": [], "onnx": []}
    for turn in range(WARM_UP + rounds):
        for side, step in (("backprop", backprop), ("onnx", feedback)):
            start = time.perf_counter()
            step()
            if turn >= WARM_UP:
                seconds[side].append(time.perf_counter() - start)
    row: dict[str, Any] = {"model": name, "step_s": {side: statistics.median(v) for side, v in seconds.items()}}
    ratios = sorted(b / a for a, b in zip(seconds["backprop"], seconds["onnx"]))
    row["ratio"] = statistics.median(ratios)
    row["ratio_quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
    if profile:
        row["profile"] = _profile(folder / f"{name}.onnx", trainer, arrays, threads)
    return row


def _profile(path: Path, trainer: OrtTrainer, arrays: Any, threads: int) -> dict[str, float]:
    """Milliseconds a step by operator."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, threads
    options.profile_file_prefix, options.log_severity_level = str(path.with_suffix("")), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {trainer.description["inputs"][0]: arrays[0], "target": arrays[1], "lr": np.array(1e-7, np.float32)}
    for _ in range(10):
        session.run([o.name for o in session.get_outputs() if not o.name.startswith("value/")], feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    total: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            total[event["args"]["op_name"]] += event["dur"] / 10 / 1000
    return {name: round(value, 3) for name, value in total.most_common(8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{versions}, {options.threads} threads, {platform.machine()}, {options.rounds} rounds")
    print("| model | backprop, torch (ms) | feedback, onnxruntime (ms) | ratio | quartiles |\n|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            row = measure(name, options.rounds, options.threads, Path(folder), options.profile)
            ratios.append(row["ratio"])
            times = " | ".join(f"{1000 * row['step_s'][side]:.2f}" for side in ("backprop", "onnx"))
            low, high = row["ratio_quartiles"]
            print(f"| {name} | {times} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |", flush=True)
            if options.profile:
                print(row["profile"], flush=True)
    print(f"geometric mean {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
